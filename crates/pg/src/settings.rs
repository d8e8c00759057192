/// What every session runs under, whatever the database or the role has as its default: a value printed under another
/// setting is another value, or not readable at all (`intervalstyle = sql_standard` was seen to turn `-1 day -2:03:04`
/// into a different interval). They travel in the startup packet, which wins over ALTER DATABASE and ALTER ROLE; set
/// later they would too, but there would be a moment without them.
const PINNED: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("search_path", ""),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // A server that has lost us gives up what our session holds within a minute, as we do with it: its default is two hours.
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// Those of the pinned settings that the server reports by itself, and how the reported value begins. What stands
/// between us and the server (a pooler) may have dropped the rest with these.
pub(crate) const REPORTED: &[(&str, &str)] = &[
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("standard_conforming_strings", "on"),
    ("client_encoding", "UTF8"),
];

/// The startup packet's `options`: the URL's own first, so that the pinned ones win. Whether transactions are read-only is said in either case: a fence may have made that the
/// database's default (`read_only.rs`), and we go on writing.
pub(crate) fn options(own: Option<&str>, read_only: bool) -> String {
    let mut options = own.map(|own| format!("{own} ")).unwrap_or_default();
    let read_only = ("default_transaction_read_only", if read_only { "on" } else { "off" });
    for (name, value) in PINNED.iter().copied().chain([read_only]) {
        options.push_str(&format!("-c {name}={value} "));
    }
    options.truncate(options.trim_end().len());
    options
}

/// `application_name`: what people see in `pg_stat_activity`.
pub(crate) fn application_name(own: Option<&str>, purpose: &str) -> String {
    format!("{} {purpose}", own.unwrap_or("crossfade"))
}

/// The server's version as a number (`15.18 (Debian …)` → 150018, `17beta1` → 170000); 0 if it is not of that form.
pub(crate) fn version_number(text: &str) -> u32 {
    let number = |text: &str| -> u32 {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().unwrap_or(0)
    };
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    let major_number = number(major);
    // `17beta1 (Debian 17~beta1-1.pgdg)` has a dot too, but no minor number.
    let minor_number = if major.bytes().all(|b| b.is_ascii_digit()) { number(minor) } else { 0 };
    major_number.saturating_mul(10_000).saturating_add(minor_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(version_number("15.18 (Debian 15.18-1.pgdg120+1)"), 150_018);
        assert_eq!(version_number("17beta1 (Debian 17~beta1-1.pgdg)"), 170_000);
        assert_eq!(version_number("16"), 160_000);
        assert_eq!(version_number(""), 0);
    }

    #[test]
    fn the_pinned_settings_come_last() {
        for (read_only, last) in [(true, "on"), (false, "off")] {
            let options = options(Some("-c datestyle=German"), read_only);
            assert!(options.starts_with("-c datestyle=German -c datestyle=ISO"));
            assert!(options.ends_with(&format!("-c default_transaction_read_only={last}")));
        }
    }
}
