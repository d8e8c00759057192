/// What a Postgres URL points at, as far as the plan must know: enough to see that two are one database. Whether two
/// names are one server only the servers can tell; the program asks them again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// Host (lower case, loopback names made one) and port of each server named.
    hosts: Vec<(String, u16)>,
    database: String,
}

impl Server {
    /// Reads `postgres://user:password@host:port/database?…`. The error says why without showing any of it.
    pub(crate) fn parse(url: &str) -> Result<Server, &'static str> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or("it does not begin with postgres://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);

        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            let (name, port) = split_port(host);
            names.push(decode(name.trim_matches(['[', ']']))?);
            ports.extend((!port.is_empty()).then(|| port.to_owned()));
        }
        let mut database = decode(database)?;
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match key {
                "host" => names = decode(value)?.split(',').map(str::to_owned).collect(),
                "port" => ports = decode(value)?.split(',').map(str::to_owned).collect(),
                "dbname" => database = decode(value)?,
                _ => {}
            }
        }
        if database.is_empty() {
            return Err("it names no database");
        }
        if names.is_empty() {
            names.push("localhost".to_owned());
        }
        let mut servers = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let port = match ports.get(i).or(ports.last()) {
                Some(port) => port.parse().map_err(|_| "its port is not a number from 1 to 65535")?,
                None => 5432,
            };
            servers.push((same_name(name), port));
        }
        Ok(Server { hosts: servers, database })
    }

    /// Whether both are, going by their names, the same database.
    pub(crate) fn is(&self, other: &Server) -> bool {
        self.database == other.database && self.hosts.iter().any(|host| other.hosts.contains(host))
    }
}

/// Host and port; an IPv6 address stands in brackets.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

fn same_name(host: &str) -> String {
    match host.to_lowercase().as_str() {
        "" | "127.0.0.1" | "::1" => "localhost".to_owned(),
        // Postgres's own default folders: a socket there is this machine.
        "/tmp" | "/var/run/postgresql" | "/run/postgresql" => "localhost".to_owned(),
        other => other.to_owned(),
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, &'static str> {
    const BAD: &str = "it has a % that no two hexadecimal digits follow (a % in a password is written %25)";
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2).ok_or(BAD)?;
        out.push(u8::from_str_radix(hex, 16).map_err(|_| BAD)?);
        out.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(out).map_err(|_| "it is not UTF-8 once its % are decoded")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_spellings_of_one_database_are_the_same() {
        for (a, b, same) in [
            ("postgres://u:p@db:5432/shop", "postgresql://w@DB/shop?sslmode=require", true),
            ("postgres://localhost/shop", "postgres://127.0.0.1:5432/shop", true),
            ("postgres://[::1]/shop", "postgres:///shop?host=/var/run/postgresql", true),
            ("postgres://db/sh%6Fp", "postgres://u@db?dbname=shop", true),
            ("postgres://a,b/shop", "postgres://c,b/shop", true),
            ("postgres://a/x?port=5433", "postgres://a:5433/x", true),
            ("postgres://db/shop", "postgres://db/shop2", false),
            ("postgres://db/shop", "postgres://db:5433/shop", false),
            ("postgres://db/shop", "postgres://db2/shop", false),
        ] {
            assert_eq!(Server::parse(a).unwrap().is(&Server::parse(b).unwrap()), same, "{a} {b}");
        }
    }

    #[test]
    fn what_is_no_url_is_said_without_showing_it() {
        for url in [
            "host=db dbname=shop",
            "mysql://u:secret@h/d",
            "postgres://u:secret@h",
            "postgres://h:x/d",
            "postgres://h/%z",
        ] {
            let why = Server::parse(url).unwrap_err();
            assert!(!why.contains("secret"));
        }
    }
}
