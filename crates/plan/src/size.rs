//! Amounts in strings: sizes and durations.

use std::time::Duration;

/// Units of sizes: binary ones, and the decimal ones that disks are sold in.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// `256MiB` in bytes; a space before the unit is fine, the unit must be there.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `150s`, `10min`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        for (text, size) in [
            ("256MiB", Some(256 << 20)),
            ("10 GiB", Some(10 << 30)),
            ("5GB", Some(5_000_000_000)),
            ("0B", Some(0)),
            ("256", None),
            ("MiB", None),
            ("256mib", None),
            ("-1MiB", None),
            ("1.5GiB", None),
            ("99999999999TiB", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), size, "{text:?}");
        }
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, length) in [
            ("150s", Some(150)),
            ("150 s", Some(150)),
            ("10min", Some(600)),
            ("0s", Some(0)),
            ("10", None),
            ("x", None),
        ] {
            assert_eq!(duration(text), length.map(Duration::from_secs), "{text:?}");
        }
    }
}
