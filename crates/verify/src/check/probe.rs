use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::Empty;
use hyper::header::{LOCATION, USER_AGENT};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use model::{Code, Problem};
use plan::Check;
use rustls::{ClientConfig, RootCertStore};

use super::databases::Visit;
use super::found::{Found, Sample};
use super::rows::{Row, Rows, Statement};
use super::spread::Spread;
use super::tenant::Tenant;

/// Few enough that a server in use does not notice.
const AT_A_TIME: usize = 8;

/// For a page that takes longer, people do not wait either.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an HTTP server must answer, as a row says.
pub(super) struct Page {
    sample: Sample,
    url: String,
    status: u16,
    location: Option<String>,
}

/// The pages to fetch of those that a query names, and how many it names.
pub(super) async fn pages(
    check: &Check,
    sql: &str,
    tenant: &Tenant,
    visit: &Visit<'_>,
) -> Result<(u64, Vec<Page>), Problem> {
    let Statement { sql, values, .. } = Statement::of(visit, sql, tenant).await?;
    let mut rows = Rows::start(visit, &sql, &values).await?;
    let columns = rows.columns();
    let mut spread = Spread::new(check.sample);
    while let Some(row) = rows.next().await? {
        spread.add(row);
    }
    let (all, chosen) = spread.finish();
    let pages = chosen.iter().map(|row| Page::of(tenant, &columns, row)).collect::<Result<_, _>>();
    Ok((all, pages.map_err(|why| visit.problem(why, NAMES))?))
}

const NAMES: &str =
    "name the query's columns url, status (a number, 200 if absent) and location: SELECT 'https://…' AS url";

impl Page {
    fn of(tenant: &Tenant, columns: &[String], row: &Row) -> Result<Page, String> {
        let value = |name: &str| {
            let place = columns.iter().position(|column| column == name)?;
            row.get(place)?.clone()
        };
        let url = value("url").ok_or("a row has no `url`")?;
        let status = value("status").unwrap_or_else(|| "200".to_owned());
        let status = status.parse().map_err(|_| format!("{status:?} is no `status`"))?;
        Ok(Page { sample: Sample::new(tenant, columns, row), url, status, location: value("location") })
    }

    /// What is wrong with the answer, if anything is.
    fn differs(&self, answer: &Answer) -> Option<String> {
        let location_is_right = self.location.is_none() || self.location == answer.location;
        match (answer.status == self.status && location_is_right, &answer.location) {
            (true, _) => None,
            (false, Some(location)) => Some(format!("{} to {location}", answer.status)),
            (false, None) => Some(answer.status.to_string()),
        }
    }
}

/// What a server said.
struct Answer {
    status: u16,
    location: Option<String>,
}

/// Fetches the pages; those that are not answered as their rows say are findings.
pub(super) async fn fetch(check: &Check, pages: Vec<Page>) -> Result<Found, Problem> {
    let client = client()?;
    let visits = pages.into_iter().map(|page| {
        let client = &client;
        async move {
            let wrong = match get(client, &page.url).await {
                Ok(answer) => page.differs(&answer),
                Err(why) => Some(why),
            };
            (page, wrong)
        }
    });
    let mut visits = futures::stream::iter(visits).buffered(AT_A_TIME);
    let mut found = Found::default();
    while let Some((page, wrong)) = visits.next().await {
        if wrong.is_some() {
            found.add(check.sample, || Sample { got: wrong, ..page.sample });
        }
    }
    Ok(found)
}

type Browser = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

fn client() -> Result<Browser, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Problem::new(Code::Internal, "TLS", error.to_string(), "report this as a defect"))?;
    // Where the system trusts nobody, http:// still works.
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// One GET. Redirects are not followed, bodies not read.
async fn get(client: &Browser, url: &str) -> Result<Answer, String> {
    let uri = url.parse::<Uri>().map_err(|error| format!("this is no URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("this is no http:// or https:// URL".to_owned());
    }
    let agent = concat!("crossfade/", env!("CARGO_PKG_VERSION"));
    let request = Request::get(uri).header(USER_AGENT, agent).body(Empty::new()).map_err(|error| error.to_string())?;
    let response = match tokio::time::timeout(PATIENCE, client.request(request)).await {
        Ok(answer) => answer.map_err(|error| format!("no answer: {}", cause(&error)))?,
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let location = response.headers().get(LOCATION);
    let location = location.map(|location| String::from_utf8_lossy(location.as_bytes()).into_owned());
    Ok(Answer { status: response.status().as_u16(), location })
}

/// What lies at the bottom of an error: the layers above it only say that there was one.
fn cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(columns: &[&str], values: &[&str]) -> Result<Page, String> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        let row: Row = values.iter().map(|&value| Some(value.to_owned())).collect();
        Page::of(&Tenant::default(), &columns, &row)
    }

    #[test]
    fn a_page_is_right_by_its_status_and_the_exact_location() {
        let page = page(&["url", "status", "location"], &["http://h/a", "301", "http://h/b"]).unwrap();
        for (status, location, wrong) in [
            (301, Some("http://h/b"), None),
            (301, Some("http://h/b/"), Some("301 to http://h/b/")),
            (302, Some("http://h/b"), Some("302 to http://h/b")),
            (301, None, Some("301")),
            (404, None, Some("404")),
        ] {
            let answer = Answer { status, location: location.map(str::to_owned) };
            assert_eq!(page.differs(&answer).as_deref(), wrong);
        }
    }

    #[test]
    fn where_a_row_says_no_more_than_the_url_200_is_right() {
        let page = page(&["url"], &["http://h/a"]).unwrap();
        assert_eq!(page.differs(&Answer { status: 200, location: None }), None);
        assert_eq!(page.differs(&Answer { status: 204, location: None }).as_deref(), Some("204"));
    }

    #[test]
    fn a_row_that_is_no_page_is_told() {
        assert!(page(&["link"], &["http://h/a"]).err().unwrap().contains("`url`"));
        assert!(page(&["url", "status"], &["http://h/a", "gone"]).err().unwrap().contains("\"gone\""));
    }
}
