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

/// The longest `class` that a code begins with counts (Postgres manual, "PostgreSQL Error Codes").
const RULES: &[Rule] = &[
    // Everything that is not below.
    Rule {
        class: "",
        policy: Policy::GiveUp,
        code: Code::Internal,
        next: "see the server's log; if the statement was crossfade's own, report this as a defect",
    },
    // The connection or the server went away: restart, failover, an administrator.
    retry("08", Code::ConnectionFailed, "check that the server runs and can be reached"),
    retry("57P01", Code::ConnectionFailed, "an administrator ended the session, or the server stops; start it again"),
    retry("57P02", Code::ConnectionFailed, "the server crashed; see its log"),
    retry("57P03", Code::ConnectionFailed, "the server is starting, stopping or recovering; wait for it"),
    retry("57P05", Code::ConnectionFailed, "the session was idle too long for idle_session_timeout; raise it"),
    retry("25P03", Code::ConnectionFailed, "raise idle_in_transaction_session_timeout for the role"),
    // Somebody cancelled the statement, or a conflict with recovery did.
    retry("57014", Code::ConnectionFailed, "find out who cancels crossfade's statements"),
    // Transactions that met.
    retry("40001", Code::LongTransaction, "let fewer sessions write the same rows"),
    retry("40P01", Code::LongTransaction, "let fewer sessions lock the same tables"),
    retry("55P03", Code::LongTransaction, "find who holds the lock: SELECT * FROM pg_locks WHERE granted"),
    retry("55006", Code::WriterRefused, "another session uses it; find it in pg_stat_activity and end one of the two"),
    // Room.
    retry("53", Code::ConnectionFailed, "the server is short of memory or of something else; see its log"),
    retry("53100", Code::DiskShort, "free room on the server's disk"),
    retry("53300", Code::ConnectionFailed, "raise max_connections or max_wal_senders, or end idle sessions"),
    tell("53400", Code::SlotsExhausted, "drop slots that nobody reads, or raise max_replication_slots and restart"),
    retry("58", Code::ConnectionFailed, "the server's disk or system failed; see its log"),
    // Letting us in.
    tell("28", Code::AuthenticationFailed, "check user and database of the URL against the server's pg_hba.conf"),
    tell(
        "28P01",
        Code::AuthenticationFailed,
        "the password is wrong: correct it in the URL or its environment variable",
    ),
    tell("3D000", Code::ConnectionFailed, "create the database, or correct its name in the URL"),
    tell("42501", Code::PrivilegeMissing, "grant the role of the URL what the message names, or use another role"),
    tell("25006", Code::PrivilegeMissing, "the server takes no writes (a standby, or read-only): use the primary"),
    // Rows.
    Rule {
        class: "23",
        policy: Policy::Constraint,
        code: Code::RowRefused,
        next: "correct the row, or the constraint of the target",
    },
    tell("22", Code::RowRefused, "correct the value at the source, or the column's type at the target"),
    // Definitions that are not what they were.
    tell("42P01", Code::SchemaChanged, "the table is gone or has another name; put it back or change the plan"),
    tell("42703", Code::SchemaChanged, "the column is gone or has another name; put it back or change the plan"),
    tell("3F000", Code::SchemaChanged, "the schema is gone or has another name; put it back or change the plan"),
];

/// What to do about a code.
pub(crate) fn rule(sqlstate: &str) -> Rule {
    let matching = RULES.iter().filter(|rule| sqlstate.starts_with(rule.class));
    // The first rule matches everything.
    matching.max_by_key(|rule| rule.class.len()).copied().unwrap_or(RULES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_class_counts() {
        for (sqlstate, policy) in [
            ("08006", Policy::Retry),
            ("57P01", Policy::Retry),
            ("40001", Policy::Retry),
            ("53300", Policy::Retry),
            ("53400", Policy::Tell(Code::SlotsExhausted)),
            ("28P01", Policy::Tell(Code::AuthenticationFailed)),
            ("28000", Policy::Tell(Code::AuthenticationFailed)),
            ("42501", Policy::Tell(Code::PrivilegeMissing)),
            ("23505", Policy::Constraint),
            ("42601", Policy::GiveUp),
            ("XX000", Policy::GiveUp),
        ] {
            assert_eq!(rule(sqlstate).policy, policy, "{sqlstate}");
        }
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
