//! Why a request failed, in a sentence. The libraries' own texts may hold signed addresses, so only known parts of them
//! are shown.

use std::error::Error as _;

use object_store::client::{HttpError, HttpErrorKind};

use super::SourceError;
use super::net::Network;
use crate::error::Error;

/// The error for `name`. `progress`: bytes read and bytes announced, once reading began.
pub(super) fn explain(
    name: &str,
    error: &object_store::Error,
    progress: Option<(u64, u64)>,
    network: &Network,
) -> Error {
    use object_store::Error as E;
    let text = error.to_string();
    let is_s3 = name.starts_with("s3://");
    let code = between(&text, "<Code>", "</Code>").filter(|c| c.chars().all(|c| c.is_ascii_alphanumeric()));
    let said = |status: &str| code.map_or_else(|| status.to_owned(), |code| format!("{status}, {code}"));
    let what = match error {
        E::NotFound { .. } if code == Some("NoSuchBucket") => {
            "there is no such bucket (404, NoSuchBucket); check its name and AWS_ENDPOINT_URL".to_owned()
        }
        E::NotFound { .. } => format!("there is nothing at this address ({}); check it", said("404")),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            let status = if matches!(error, E::PermissionDenied { .. }) { "403" } else { "401" };
            let fix = if is_s3 {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and the bucket's policy"
            } else {
                "log in, download the file and give its path"
            };
            format!("the server refuses access ({}); {fix}", said(status))
        }
        _ => other(error, &text, progress, network, is_s3),
    };
    SourceError::Network { name: name.to_owned(), what }.into()
}

fn other(
    error: &object_store::Error,
    text: &str,
    progress: Option<(u64, u64)>,
    network: &Network,
    is_s3: bool,
) -> String {
    let tries = match network.retries {
        0 => String::new(),
        1 => " and 1 retry".to_owned(),
        n => format!(" and {n} retries"),
    };
    if let Some(status) = between(text, "status code: ", ":").and_then(|s| s.split(' ').next()) {
        let number: u32 = status.parse().unwrap_or(0);
        return match number {
            301 | 307 | 308 if is_s3 => format!("the bucket is in another region ({number}); set AWS_REGION"),
            300..400 => format!("the server redirects elsewhere ({number}); give the final address"),
            500.. | 429 => {
                format!("the server fails with status {number} after one try{tries}; try again later")
            }
            _ => format!("the server answers with status {number}; check the address"),
        };
    }
    if text.contains("redirect without LOCATION") {
        return "the bucket is in another region; set AWS_REGION".to_owned();
    }
    if text.to_ascii_lowercase().contains("content-length") || text.contains("Content-Length Header missing")
    {
        return "the server does not say how long the file is; download it and give its path".to_owned();
    }
    let mut sources = std::iter::successors(error.source(), |&e| e.source());
    let kind = sources.find_map(|e| e.downcast_ref::<HttpError>()).map(HttpError::kind);
    let cause = cause(error);
    match (kind, progress) {
        (Some(HttpErrorKind::Timeout), Some((read, size))) => format!(
            "the server fell silent for {:?} behind {read} of {size} bytes; try again, or download it and give its path",
            network.read_timeout
        ),
        (Some(HttpErrorKind::Timeout), None) => format!(
            "the server was silent for {:?} in one try{tries}; check the address and the network",
            network.read_timeout
        ),
        (Some(HttpErrorKind::Connect), None) => {
            format!("cannot connect after one try{tries} ({cause}); check the address and the network")
        }
        (_, Some((read, size))) => {
            format!("the connection broke behind {read} of {size} bytes ({cause}); try again")
        }
        (_, None) => format!("the request failed ({cause}); check the address and the network"),
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
