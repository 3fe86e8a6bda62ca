//! Objects and web addresses.

use std::fmt;

use futures_util::StreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use url::Url;

use super::SourceError;
use super::net::{self, Network};
use super::net_fault::explain;
use super::stored::Bytes;
use crate::error::Error;

/// Where an object is. Shown without credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Address {
    S3 { bucket: String, key: String },
    Web { url: Url },
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// The objects below a prefix, sorted by key.
pub(super) struct Listing {
    pub(super) addresses: Vec<Address>,
    /// Whether a pattern chose them by more than their place.
    pub(super) explicit: bool,
}

impl Address {
    pub(super) fn parse(uri: &str, network: &Network) -> Result<Self, Error> {
        let (scheme, rest) = uri.split_once("://").unwrap_or_default();
        let refuse = |name: &str, what: &str| {
            Err(SourceError::Address { name: name.to_owned(), what: what.to_owned() }.into())
        };
        match scheme {
            "s3" => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() || bucket.contains(['@', ':', '*', '?', '[']) {
                    let what = "write s3://bucket/key; endpoint and credentials come from the environment \
                                (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)";
                    return refuse("s3://…", what);
                }
                Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            "http" | "https" => {
                let Ok(url) = Url::parse(uri) else {
                    return refuse(&format!("{scheme}://…"), "not an address; correct it");
                };
                if !url.username().is_empty() || url.password().is_some() {
                    let what = "an address with a user name or password is not used; download the file and give its path";
                    return refuse(&bare(&url), what);
                }
                if !network.may_visit(&url) {
                    let what = "plain http could be changed on the way; use https, or allow it";
                    return refuse(&bare(&url), what);
                }
                Ok(Self::Web { url })
            }
            _ => refuse(
                &format!("{scheme}://…"),
                "this kind of address is not read; use a path, s3:// or https://",
            ),
        }
    }

    /// As the user knows it; a query, which may hold a signature, is left out.
    pub(super) fn name(&self) -> String {
        match self {
            Self::S3 { bucket, key } => format!("s3://{bucket}/{key}"),
            Self::Web { url } => bare(url),
        }
    }

    /// Equal for the same object alone.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::S3 { .. } => self.name(),
            Self::Web { url } => url.to_string(),
        }
    }

    /// The part that ends with the file's name.
    pub(super) fn path(&self) -> &str {
        match self {
            Self::S3 { key, .. } => key,
            Self::Web { url } => url.path(),
        }
    }

    /// The objects that a prefix or a pattern stands for; nothing for the address of one object.
    pub(super) fn list(&self, network: &Network) -> Result<Option<Listing>, Error> {
        let Self::S3 { bucket, key } = self else { return Ok(None) };
        let (prefix, last) = key.rsplit_once('/').map_or(("", key.as_str()), |(p, l)| (p, l));
        let magic = ['*', '?', '['];
        let refuse = |what: String| Err(SourceError::Address { name: self.name(), what }.into());
        if prefix.contains(magic) {
            return refuse(
                "only the last part of a key can be a pattern; name the prefix in full".to_owned(),
            );
        }
        if !last.is_empty() && !last.contains(magic) {
            return Ok(None);
        }
        let pattern = match glob::Pattern::new(if last.is_empty() { "*" } else { last }) {
            Ok(pattern) => pattern,
            Err(e) => {
                return refuse(format!("not a pattern ({} at character {}); correct it", e.msg, e.pos + 1));
            }
        };
        let (prefix, bucket) = (prefix.to_owned(), bucket.clone());
        let (name, network) = (self.name(), network.clone());
        let keys = net::alone(&name.clone(), async move {
            let prefix = Key::parse(&prefix).map_err(|e| bad_key(&name, &e))?;
            let store = net::s3(&bucket, &name, &network)?;
            let found = store.list_with_delimiter(Some(&prefix)).await;
            let found = found.map_err(|e| explain(&name, &e, None, &network))?;
            Ok(found.objects.into_iter().map(|o| o.location.to_string()).collect::<Vec<_>>())
        })?;
        let mut keys: Vec<String> = keys
            .into_iter()
            .filter(|key| pattern.matches(key.rsplit('/').next().unwrap_or_default()))
            .collect();
        keys.sort();
        let Self::S3 { bucket, .. } = self else { return Ok(None) };
        let addresses = keys.into_iter().map(|key| Self::S3 { bucket: bucket.clone(), key }).collect();
        Ok(Some(Listing { addresses, explicit: !last.is_empty() && last != "*" }))
    }

    /// The object's bytes, fetched as they are read.
    pub(super) fn open(&self, network: &Network) -> Result<Bytes, Error> {
        let (address, name, network) = (self.clone(), self.name(), network.clone());
        net::stream(&name.clone(), move |sender| async move {
            let (store, key): (Box<dyn ObjectStore>, Key) = match &address {
                Self::S3 { bucket, key } => {
                    let key = Key::parse(key).map_err(|e| bad_key(&name, &e))?;
                    (Box::new(net::s3(bucket, &name, &network)?), key)
                }
                Self::Web { url } => (Box::new(net::web(url, &name, &network)?), Key::default()),
            };
            let got = store.get(&key).await.map_err(|e| explain(&name, &e, None, &network))?;
            let size = got.meta.size;
            let mut chunks = got.into_stream();
            let mut read = 0;
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|e| explain(&name, &e, Some((read, size)), &network))?;
                read += chunk.len() as u64;
                if sender.send(Ok(chunk.to_vec())).is_err() {
                    return Ok(());
                }
            }
            if read == size || size == net::UNKNOWN_LENGTH {
                return Ok(());
            }
            let what = format!("the server sent {read} of {size} bytes; try again");
            Err(SourceError::Network { name, what }.into())
        })
    }
}

fn bare(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Neither can fail for http addresses, which have a host.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.to_string()
}

fn bad_key(name: &str, error: &object_store::path::Error) -> Error {
    let what = format!("the key is not usable ({error}); rename the object");
    SourceError::Address { name: name.to_owned(), what }.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(uri: &str) -> String {
        Address::parse(uri, &Network::default()).unwrap_err().to_string()
    }

    #[test]
    fn credentials_are_refused_and_never_shown() {
        for uri in
            ["s3://key:hunter2@bucket/x.csv", "https://me:hunter2@host/x.csv", "ftp://me:hunter2@host/x"]
        {
            let message = refused(uri);
            assert!(!message.contains("hunter2"), "{message}");
        }
        let signed = "https://host/x.csv?X-Signature=hunter2#hunter2";
        let address = Address::parse(signed, &Network::default()).unwrap();
        assert_eq!(address.name(), "https://host/x.csv");
        assert_eq!(format!("{address:?}"), "https://host/x.csv");
        assert_eq!(address.identity(), signed);
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for host in ["localhost", "127.0.0.1:8", "127.9.9.9", "[::1]:8"] {
            assert!(Address::parse(&format!("http://{host}/a.csv"), &Network::default()).is_ok(), "{host}");
        }
        for host in ["example.com", "127.0.0.1.example.com", "10.0.0.1", "169.254.169.254", "0x7f.1.example"]
        {
            assert_eq!(
                refused(&format!("http://{host}/a.csv")),
                format!(
                    "`http://{host}/a.csv`: plain http could be changed on the way; use https, or allow it"
                )
            );
        }
        let network = Network { allow_http: true, ..Network::default() };
        assert!(Address::parse("http://example.com/a.csv", &network).is_ok());
    }
}
