//! The one table from what a server says to what is done about it.

use model::Code;

use crate::error::Policy;

/// What is done about one SQLSTATE, or a class of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// The code, or how the codes of the class begin.
    pub(crate) class: &'static str,
    pub(crate) policy: Policy,
    /// What people are told once nobody tries any more.
    pub(crate) code: Code,
    pub(crate) next: &'static str,
}

const fn retry(class: &'static str, code: Code, next: &'static str) -> Rule {
    Rule { class, policy: Policy::Retry, code, next }
}

const fn tell(class: &'static str, code: Code, next: &'static str) -> Rule {
    Rule { class, policy: Policy::Tell(code), code, next }
}

const fn constraint(class: &'static str, next: &'static str) -> Rule {
    Rule { class, policy: Policy::Constraint, code: Code::RowRefused, next }
}

/// Nobody has thought of what would help: an error in crossfade's own statements, mostly.
const fn give_up(class: &'static str) -> Rule {
    Rule { class, policy: Policy::GiveUp, code: Code::Internal, next: GIVEN_UP }
}

const GIVEN_UP: &str = "see the server's log; if the statement was crossfade's own, report this as a defect";

/// Every class of the Postgres manual's appendix "PostgreSQL Error Codes", and codes of it that mean something else than their class. The
/// longest `class` that a code begins with counts. docs/errors.md shows this table.
pub(crate) const RULES: &[Rule] = &[
    // No errors, or none of a statement that crossfade makes.
    give_up("00"),
    give_up("01"),
    give_up("02"),
    give_up("03"),
    // The connection, or whoever is in between.
    retry("08", Code::ConnectionFailed, "check that the server runs and can be reached"),
    give_up("09"),
    give_up("0A"),
    give_up("0B"),
    give_up("0F"),
    give_up("0L"),
    give_up("0P"),
    give_up("0Z"),
    give_up("20"),
    give_up("21"),
    // Rows.
    tell("22", Code::RowRefused, "correct the value at the source, or the column's type at the target"),
    constraint("23", "correct the row, or the constraint of the target"),
    give_up("24"),
    give_up("25"),
    tell("25006", Code::PrivilegeMissing, "the server takes no writes (a standby, or read-only): use the primary"),
    retry("25P03", Code::ConnectionFailed, "raise idle_in_transaction_session_timeout for the role"),
    retry("25P04", Code::ConnectionFailed, "raise transaction_timeout for the role"),
    // A prepared statement is gone.
    tell("26", Code::ConnectionFailed, "connect to Postgres itself, without a pooler in between"),
    give_up("27"),
    // Letting us in.
    tell("28", Code::AuthenticationFailed, "check user and database of the URL against the server's pg_hba.conf"),
    tell(
        "28P01",
        Code::AuthenticationFailed,
        "the password is wrong: correct it in the URL or its environment variable",
    ),
    give_up("2B"),
    give_up("2D"),
    // Functions and triggers of the application.
    tell("2F", Code::RowRefused, "a function of the target refuses the row: mend it, or disable its trigger"),
    give_up("34"),
    tell("38", Code::RowRefused, "a function of the target refuses the row: mend it, or disable its trigger"),
    tell("39", Code::RowRefused, "a function of the target refuses the row: mend it, or disable its trigger"),
    give_up("3B"),
    tell("3D", Code::ConnectionFailed, "create the database, or correct its name in the URL"),
    tell("3F", Code::SchemaChanged, "the schema is gone or has another name; put it back or change the plan"),
    // Transactions that met.
    retry("40", Code::LongTransaction, "let fewer sessions write the same rows"),
    retry("40P01", Code::LongTransaction, "let fewer sessions lock the same tables"),
    // Definitions that are not what they were.
    give_up("42"),
    tell("42501", Code::PrivilegeMissing, "grant the role of the URL what the message names, or use another role"),
    tell("42P01", Code::SchemaChanged, "the table is gone or has another name; put it back or change the plan"),
    tell("42703", Code::SchemaChanged, "the column is gone or has another name; put it back or change the plan"),
    tell("42704", Code::SchemaChanged, "a type or another object is gone or has another name; put it back"),
    tell("42883", Code::SchemaChanged, "a function or operator is gone or has another name; put it back"),
    constraint("44", "correct the row, or the view's condition at the target"),
    // Room.
    retry("53", Code::ConnectionFailed, "the server is short of memory or of something else; see its log"),
    retry("53100", Code::DiskShort, "free room on the server's disk"),
    retry("53300", Code::ConnectionFailed, "raise max_connections or max_wal_senders, or end idle sessions"),
    tell("53400", Code::SlotsExhausted, "drop slots that nobody reads, or raise max_replication_slots and restart"),
    // A row of an index is too long, a table has too many columns.
    tell(
        "54",
        Code::RowRefused,
        "the value is more than the target's index or table takes: change the definition there",
    ),
    give_up("55"),
    retry("55006", Code::WriterRefused, "another session uses it; find it in pg_stat_activity and end one of the two"),
    retry("55P03", Code::LongTransaction, "find who holds the lock: SELECT * FROM pg_locks WHERE granted"),
    // The server went away, or an administrator wants it: restart, failover, a cancelled statement.
    retry("57", Code::ConnectionFailed, "an administrator or the server itself has interrupted this; see its log"),
    retry("57014", Code::ConnectionFailed, "find out who cancels crossfade's statements"),
    retry("57P01", Code::ConnectionFailed, "an administrator ended the session, or the server stops; start it again"),
    retry("57P02", Code::ConnectionFailed, "the server crashed; see its log"),
    retry("57P03", Code::ConnectionFailed, "the server is starting, stopping or recovering; wait for it"),
    tell("57P04", Code::ConnectionFailed, "the database was dropped; correct its name in the URL"),
    retry("57P05", Code::ConnectionFailed, "the session was idle too long for idle_session_timeout; raise it"),
    retry("58", Code::ConnectionFailed, "the server's disk or system failed; see its log"),
    retry("72", Code::ConnectionFailed, "raise old_snapshot_threshold"),
    give_up("F0"),
    // A foreign table, on the target.
    tell("HV", Code::RowRefused, "a foreign table of the target does not take the row; see the foreign server"),
    // RAISE in PL/pgSQL.
    tell("P0", Code::RowRefused, "a function of the target refuses the row: mend it, or disable its trigger"),
    give_up("XX"),
];

/// A class that is none of Postgres's: a function of the application raised it.
const RAISED: Rule =
    tell("", Code::RowRefused, "a function of the server raises a code of its own: mend it, or disable its trigger");

/// What to do about a code.
pub(crate) fn rule(sqlstate: &str) -> Rule {
    let matching = RULES.iter().filter(|rule| sqlstate.starts_with(rule.class));
    matching.max_by_key(|rule| rule.class.len()).copied().unwrap_or(RAISED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classes of the Postgres manual's appendix "PostgreSQL Error Codes", versions 14 to 18.
    const CLASSES: &[&str] = &[
        "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "20", "21", "22", "23", "24", "25",
        "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55",
        "57", "58", "72", "F0", "HV", "P0", "XX",
    ];

    #[test]
    fn every_class_has_its_rule_and_no_other_has_one() {
        for class in CLASSES {
            let rules = RULES.iter().filter(|rule| rule.class == *class).count();
            assert_eq!(rules, 1, "class {class}");
        }
        for rule in RULES {
            assert!(CLASSES.contains(&&rule.class[..2]), "{} is of no class", rule.class);
            assert!(matches!(rule.class.len(), 2 | 5) && !rule.next.is_empty(), "{}", rule.class);
        }
    }

    #[test]
    fn the_longest_class_counts() {
        for (sqlstate, policy) in [
            ("08006", Policy::Retry),
            ("57P01", Policy::Retry),
            ("57P04", Policy::Tell(Code::ConnectionFailed)),
            ("40001", Policy::Retry),
            ("40P01", Policy::Retry),
            ("53100", Policy::Retry),
            ("53200", Policy::Retry),
            ("53300", Policy::Retry),
            ("53400", Policy::Tell(Code::SlotsExhausted)),
            ("58030", Policy::Retry),
            ("28P01", Policy::Tell(Code::AuthenticationFailed)),
            ("28000", Policy::Tell(Code::AuthenticationFailed)),
            ("42501", Policy::Tell(Code::PrivilegeMissing)),
            ("22001", Policy::Tell(Code::RowRefused)),
            ("54000", Policy::Tell(Code::RowRefused)),
            ("P0001", Policy::Tell(Code::RowRefused)),
            ("23505", Policy::Constraint),
            ("42601", Policy::GiveUp),
            ("XX000", Policy::GiveUp),
            ("ZZ001", Policy::Tell(Code::RowRefused)),
        ] {
            assert_eq!(rule(sqlstate).policy, policy, "{sqlstate}");
        }
    }

    /// docs/errors.md shows the table.
    #[test]
    fn the_table_stands_in_the_documentation() {
        let row = |rule: &Rule| {
            let what = match rule.policy {
                Policy::Retry => format!("tried again; `{}`", rule.code),
                Policy::Constraint => "row by row; then `divergence`".to_owned(),
                Policy::Tell(_) | Policy::GiveUp => format!("stops: `{}`", rule.code),
            };
            format!("| {} | {what} | {} |\n", rule.class, rule.next)
        };
        let rows: String = RULES.iter().filter(|rule| rule.policy != Policy::GiveUp).map(row).collect();
        // Cargo runs tests in the package's folder.
        let document = std::fs::read_to_string("../../docs/errors.md").unwrap_or_default();
        assert!(document.contains(&rows), "the table in docs/errors.md must read:\n{rows}");
    }

    #[test]
    fn what_a_person_is_told_carries_the_code_of_the_policy() {
        for rule in RULES {
            match rule.policy {
                Policy::Tell(code) => assert_eq!(code, rule.code, "{}", rule.class),
                Policy::Constraint => assert_eq!(rule.code, Code::RowRefused),
                Policy::Retry | Policy::GiveUp => {}
            }
        }
    }
}
