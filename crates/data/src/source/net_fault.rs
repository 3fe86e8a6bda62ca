//! Why a request failed, in a sentence. The libraries' own texts may hold signed addresses, so only known parts of them
//! are shown.

use std::error::Error as _;

use object_store::client::{HttpError, HttpErrorKind};

use super::SourceError;
use super::net::{Network, UNKNOWN_LENGTH};
use crate::error::Error;

/// The error for `name`. `progress`: bytes read and bytes announced, once reading began.
pub(super) fn explain(
    name: &str,
    error: &object_store::Error,
    progress: Option<(u64, u64)>,
    network: &Network,
) -> Error {
    let text = error.to_string();
    let what = match status(error, &text) {
        Some(status) => refused(status, &text, name.starts_with("s3://"), network),
        None if text.contains("redirect without LOCATION") => {
            "the bucket is in another region; set AWS_REGION".to_owned()
        }
        None if text.to_ascii_lowercase().contains("content-length") => {
            "the server does not say how long the file is; download it and give its path".to_owned()
        }
        None => broken(error, progress, network),
    };
    SourceError::Network { name: name.to_owned(), what }.into()
}

fn status(error: &object_store::Error, text: &str) -> Option<u32> {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => Some(404),
        E::PermissionDenied { .. } => Some(403),
        E::Unauthenticated { .. } => Some(401),
        // The library has no other way to it.
        _ => between(text, "status code: ", ":").and_then(|s| s.split(' ').next()?.parse().ok()),
    }
}

/// The server answered, but not with the file.
fn refused(status: u32, text: &str, is_s3: bool, network: &Network) -> String {
    let code = between(text, "<Code>", "</Code>").filter(|c| c.chars().all(|c| c.is_ascii_alphanumeric()));
    let said = code.map_or_else(|| status.to_string(), |code| format!("{status}, {code}"));
    match status {
        404 if code == Some("NoSuchBucket") => {
            format!("there is no such bucket ({said}); check its name and AWS_ENDPOINT_URL")
        }
        404 => format!("there is nothing at this address ({said}); check it"),
        401 | 403 if is_s3 => format!(
            "the server refuses access ({said}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and the \
             bucket's policy"
        ),
        401 | 403 => {
            format!("the server refuses access ({said}); log in, download the file and give its path")
        }
        301 | 307 | 308 if is_s3 => format!("the bucket is in another region ({said}); set AWS_REGION"),
        300..=399 => format!("the server redirects elsewhere ({said}); give the final address"),
        429 | 500.. => {
            format!("the server fails with status {status} after one try{}; try again later", tries(network))
        }
        _ => format!("the server answers with status {said}; check the address"),
    }
}

/// There was no whole answer.
fn broken(error: &object_store::Error, progress: Option<(u64, u64)>, network: &Network) -> String {
    let mut sources = std::iter::successors(error.source(), |&e| e.source());
    let kind = sources.find_map(|e| e.downcast_ref::<HttpError>()).map(HttpError::kind);
    let (cause, tries, silence) = (cause(error), tries(network), network.read_timeout);
    let progress = progress.map(|(read, size)| match size {
        UNKNOWN_LENGTH => format!("{read} bytes"),
        _ => format!("{read} of {size} bytes"),
    });
    match (kind, progress) {
        (Some(HttpErrorKind::Timeout), Some(progress)) => format!(
            "the server fell silent for {silence:?} behind {progress}; try again, or download it and give its path"
        ),
        (Some(HttpErrorKind::Timeout), None) => {
            format!(
                "the server was silent for {silence:?} in one try{tries}; check the address and the network"
            )
        }
        _ if cause.to_ascii_lowercase().contains("certificate") => format!(
            "the server's certificate is not trusted ({cause}); install its authority's, or name it in SSL_CERT_FILE"
        ),
        (Some(HttpErrorKind::Connect), None) => {
            format!("cannot connect after one try{tries} ({cause}); check the address and the network")
        }
        (_, Some(progress)) => format!("the connection broke behind {progress} ({cause}); try again"),
        (_, None) => format!("the request failed ({cause}); check the address and the network"),
    }
}

fn tries(network: &Network) -> String {
    match network.retries {
        0 => String::new(),
        1 => " and 1 retry".to_owned(),
        n => format!(" and {n} retries"),
    }
}

/// The innermost reason, which names no address.
fn cause(error: &object_store::Error) -> String {
    let innermost = std::iter::successors(error.source(), |&e| e.source()).last();
    let text = innermost.map_or_else(|| "no reason given".to_owned(), ToString::to_string);
    if text.contains("://") { "no reason that can be shown".to_owned() } else { text }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}
