//! The network: clients, bounds on time, and a thread that fetches while another reads.

use std::fmt;
use std::future::Future;
use std::io::{self, Read};
use std::sync::Once;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use futures_util::future::BoxFuture;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Setting};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::{Host, Url};

use super::SourceError;
use super::net_fault::explain;
use super::stored::Bytes;
use crate::error::Error;

/// Chunks that are fetched ahead of the reader.
const AHEAD: usize = 8;
/// How long after the start of a file its transfer may still be taken up again.
const LONGEST: Duration = Duration::from_hours(24);
/// Redirects that are followed.
const REDIRECTS: usize = 5;

/// How to speak to servers.
#[derive(Clone)]
pub struct Network {
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest silence of a server.
    pub read_timeout: Duration,
    /// How often a failed request is made again.
    pub retries: usize,
    /// The first pause before that; each next one is up to twice as long.
    pub backoff: Duration,
    /// Whether plain `http` may go further than this machine.
    pub allow_http: bool,
    /// Settings such as `AWS_ENDPOINT_URL` that go before those of the environment.
    pub aws: Vec<(String, String)>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            retries: 3,
            backoff: Duration::from_millis(200),
            allow_http: false,
            aws: Vec::new(),
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The settings may be secrets.
        let keys: Vec<&str> = self.aws.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("Network")
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("retries", &self.retries)
            .field("allow_http", &self.allow_http)
            .field("aws", &keys)
            .finish_non_exhaustive()
    }
}

impl Network {
    /// Whether an address may be visited at all: plain `http` stays on this machine unless it is allowed.
    pub(super) fn may_visit(&self, url: &Url) -> bool {
        url.scheme() == "https" || (url.scheme() == "http" && (self.allow_http || is_loopback(url)))
    }

    fn retry(&self) -> RetryConfig {
        let backoff = BackoffConfig { init_backoff: self.backoff, ..BackoffConfig::default() };
        // Counted from the start of a file, which may take hours: the number of retries is what bounds them.
        RetryConfig { max_retries: self.retries, backoff, retry_timeout: LONGEST }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Makes the clients of both kinds of store: their own would find no TLS.
#[derive(Debug)]
struct Connector {
    network: Network,
    /// Proxies are no use for a server on this machine.
    direct: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        static TLS: Once = Once::new();
        // Someone else may have chosen one already: then that one is used.
        TLS.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let network = self.network.clone();
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            let secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > REDIRECTS {
                attempt.error("too many redirects")
            } else if !network.may_visit(attempt.url()) || (secure && attempt.url().scheme() != "https") {
                attempt.error("it redirects to an address without encryption")
            } else {
                attempt.follow()
            }
        });
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tunesmith/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.network.connect_timeout)
            .read_timeout(self.network.read_timeout)
            .redirect(redirects);
        if self.direct {
            builder = builder.no_proxy();
        }
        let client = builder.build();
        let client =
            client.map_err(|e| object_store::Error::Generic { store: "HTTP", source: Box::new(e) })?;
        Ok(HttpClient::new(Unmeasured(client)))
    }
}

/// The length that stands for a file whose server does not say it.
pub(super) const UNKNOWN_LENGTH: u64 = i64::MAX as u64;

/// Lets replies without a length pass, where the transfer itself tells its end: in chunks, or by HTTP/2. One that ends
/// with its connection could be cut off unseen, and stays without.
#[derive(Debug)]
struct Unmeasured(reqwest::Client);

impl HttpService for Unmeasured {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut response = self.0.call(request).await?;
            let version = format!("{:?}", response.version());
            let headers = response.headers_mut();
            let chunked = headers.get("transfer-encoding").is_some_and(|coding| {
                coding
                    .to_str()
                    .is_ok_and(|coding| coding.to_ascii_lowercase().trim_end().ends_with("chunked"))
            });
            let length = UNKNOWN_LENGTH.to_string().parse();
            if !headers.contains_key("content-length")
                && (chunked || version == "HTTP/2.0")
                && let Ok(length) = length
            {
                headers.insert("content-length", length);
                // A part of it cannot be asked for again by its bounds.
                headers.remove("etag");
            }
            Ok(response)
        })
    }
}

/// A bucket, with endpoint and credentials of the environment.
pub(super) fn s3(bucket: &str, name: &str, network: &Network) -> Result<AmazonS3, Error> {
    let refuse =
        |what: &str| Error::from(SourceError::Network { name: name.to_owned(), what: what.to_owned() });
    let mut builder = AmazonS3Builder::from_env();
    for (key, value) in &network.aws {
        let setting = key.to_ascii_lowercase().parse();
        let setting = setting.map_err(|_| refuse(&format!("`{key}` is not a setting of S3; correct it")))?;
        builder = builder.with_config(setting, value);
    }
    let set = |setting: Setting| builder.get_config_value(&setting).filter(|value| !value.is_empty());
    let truth =
        |setting: Setting| set(setting).is_some_and(|v| matches!(v.as_str(), "1" | "true" | "TRUE" | "True"));
    let some = [
        Setting::AccessKeyId,
        Setting::WebIdentityTokenFile,
        Setting::ContainerCredentialsRelativeUri,
        Setting::ContainerCredentialsFullUri,
        Setting::MetadataEndpoint,
    ];
    // Without any, the library would ask a metadata service that only some clouds have, and wait for it.
    if !truth(Setting::SkipSignature) && !some.into_iter().any(|setting| set(setting).is_some()) {
        return Err(refuse(
            "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true \
             for a public bucket",
        ));
    }
    let endpoint = set(Setting::S3Endpoint).or_else(|| set(Setting::Endpoint));
    let mut direct = false;
    if let Some(endpoint) = endpoint {
        let allowed = network.allow_http || truth(Setting::Client(object_store::ClientConfigKey::AllowHttp));
        let network = Network { allow_http: allowed, ..network.clone() };
        match Url::parse(&endpoint) {
            Ok(url) if network.may_visit(&url) => direct = is_loopback(&url),
            Ok(url) if url.scheme() == "http" => {
                return Err(refuse(
                    "the endpoint is plain http, which could be changed on the way; use https or set AWS_ALLOW_HTTP=true",
                ));
            }
            _ => return Err(refuse("AWS_ENDPOINT_URL is not an address; correct it")),
        }
    }
    let connector = Connector { network: network.clone(), direct };
    let builder = builder.with_bucket_name(bucket).with_retry(network.retry()).with_http_connector(connector);
    // What is allowed was decided above.
    let builder = builder.with_allow_http(true);
    builder.build().map_err(|e| explain(name, &e, None, network))
}

/// One web address.
pub(super) fn web(url: &Url, name: &str, network: &Network) -> Result<HttpStore, Error> {
    let connector = Connector { network: network.clone(), direct: is_loopback(url) };
    let builder = HttpBuilder::new()
        .with_url(url.as_str())
        .with_retry(network.retry())
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_http_connector(connector);
    builder.build().map_err(|e| explain(name, &e, None, network))
}

/// Runs a task on a runtime of its own. On another thread, because the caller's may belong to a runtime already.
fn on_thread(task: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Without a runtime the task is dropped, and with it the sender that the reader waits for.
    if let Ok(runtime) = runtime {
        runtime.block_on(task);
    }
}

fn start(work: impl FnOnce() + Send + 'static, name: &str) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name("tunesmith-fetch".to_owned()).spawn(work);
    thread.map(drop).map_err(|e| Error::io(name.as_ref(), e))
}

/// Waits for one request.
pub(super) fn alone<T: Send + 'static>(
    name: &str,
    task: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = sync_channel(1);
    start(move || on_thread(async move { drop(sender.send(task.await)) }), name)?;
    receiver.recv().unwrap_or_else(|_| Err(stopped(name)))
}

/// The chunks that a task sends, as bytes to read. What the task returns ends them.
pub(super) fn stream<F>(
    name: &str,
    task: impl FnOnce(SyncSender<Result<Vec<u8>, Error>>) -> F + Send + 'static,
) -> Result<Bytes, Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let (sender, chunks) = sync_channel(AHEAD);
    let work = async move || {
        // An empty chunk is the end: a task that died would end without.
        let last = task(sender.clone()).await.map(|()| Vec::new());
        drop(sender.send(last));
    };
    start(move || on_thread(work()), name)?;
    Ok(Box::new(Download { chunks, name: name.to_owned(), current: Vec::new(), at: 0, ended: false }))
}

fn stopped(name: &str) -> Error {
    let what = "the thread that fetches it stopped; try again".to_owned();
    SourceError::Network { name: name.to_owned(), what }.into()
}

struct Download {
    chunks: Receiver<Result<Vec<u8>, Error>>,
    name: String,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Download {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() && !self.ended {
            let chunk = self.chunks.recv().unwrap_or_else(|_| Err(stopped(&self.name)));
            let chunk = chunk.map_err(io::Error::other)?;
            self.ended = chunk.is_empty();
            (self.current, self.at) = (chunk, 0);
        }
        let n = (self.current.len() - self.at).min(out.len());
        out[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
