/// The same URL with another database of that server.
pub fn beside(url: &str, database: &str) -> String {
    let (rest, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = rest.find("://").map_or(0, |at| at + 3);
    let end = rest[authority..].find('/').map_or(rest.len(), |at| authority + at);
    // As a parameter it would go before what the path says.
    let kept: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("dbname=")).collect();
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    format!("{}/{}{query}", &rest[..end], encode(database))
}

/// `%XX` for all that means something in a URL, or might.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Endpoint;

    #[test]
    fn only_the_database_is_another() {
        for (url, describes) in [
            ("postgres://u:p%2Fw@h:1/one?sslmode=disable", "h:1/an other"),
            ("postgres://u@h:1", "h:1/an other"),
            ("postgres://u@[::1]:2/?connect_timeout=3&dbname=one", "[::1]:2/an other"),
        ] {
            let endpoint = Endpoint::parse(&beside(url, "an other")).unwrap();
            assert_eq!(endpoint.describe(), describes);
            assert_eq!((endpoint.user(), endpoint.has_password()), ("u", url.contains(":p%")));
        }
    }
}
