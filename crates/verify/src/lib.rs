//! Whether the target is what the source is.
