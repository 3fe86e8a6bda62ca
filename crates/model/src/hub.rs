//! Base models by name: a directory, or a repository of the Hugging Face Hub in the cache that all its tools share.

mod cache;
mod options;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

pub use options::HubOptions;

use crate::card::is_repo_id;
use crate::error::{Error, Result};

/// How often a file is asked for before its error is reported. Each time continues where the last one broke off.
const ATTEMPTS: u64 = 3;

/// How far the download of one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download<'a> {
    /// Name of the file in the repository.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The directory of a base model.
///
/// An existing directory is used as it is. `organisation/name` is a repository of the Hugging Face Hub: if the
/// cache has the whole model at the wanted revision, no connection is made; otherwise the files that are needed
/// (configuration, tokenizer, safetensors weights) are downloaded, all from one commit, with calls of `progress`;
/// `options` may leave the weights out.
pub fn resolve(base: &str, options: &HubOptions, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
    let bad = |problem: String| Error::Hub { base: base.to_string(), problem };
    let path = Path::new(base);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return Err(bad("is a file; give the directory that holds config.json and the weights".into()));
    }
    if !is_repo_id(base) {
        return Err(bad(
            "is neither an existing directory nor a repository id of the form `organisation/name`".into(),
        ));
    }
    let revision = options.revision.as_deref().unwrap_or("main");
    if !cache::is_plain_revision(revision) {
        return Err(bad(format!("`{revision}` is not a valid revision; give a branch, a tag or a commit")));
    }
    let cache_dir = options.cache_dir().ok_or_else(|| {
        bad("there is no home directory for the Hugging Face cache; set HF_HOME to a directory".into())
    })?;
    let repo = Repo::with_revision(base.to_string(), RepoType::Model, revision.to_string());
    let snapshot = cache::find_snapshot(&cache_dir, &repo);
    let missing_files = |snapshot: &Path| cache::missing_files(snapshot, options.without_weights);
    let missing = snapshot.as_deref().map(missing_files);
    if let (Some(snapshot), Some([])) = (&snapshot, missing.as_deref()) {
        return Ok(snapshot.clone());
    }
    if options.offline {
        let what = match &missing {
            None => format!("revision `{revision}` is not in the cache `{}`", cache_dir.display()),
            Some(files) => format!("the cache `{}` lacks {}", cache_dir.display(), files.join(", ")),
        };
        return Err(bad(format!(
            "{what}, and offline mode is on; run once online, or give a local directory"
        )));
    }
    let download = Fetch { base, revision, options, cache: Cache::new(cache_dir) };
    let snapshot = download.run(repo, progress)?;
    match missing_files(&snapshot).as_slice() {
        [] => Ok(snapshot),
        missing => Err(bad(format!("the repository lacks {}", missing.join(", ")))),
    }
}

/// One download of a repository.
struct Fetch<'a> {
    base: &'a str,
    revision: &'a str,
    options: &'a HubOptions,
    cache: Cache,
}

impl Fetch<'_> {
    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::Hub { base: self.base.to_string(), problem: problem.into() }
    }

    fn run(&self, repo: Repo, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
        let api = self.api()?;
        let info = api.repo(repo.clone()).info().map_err(|error| self.explain(&error, ""))?;
        if !cache::is_plain_revision(&info.sha) || info.sha.contains('/') {
            return Err(self.bad("the Hub's answer names no valid commit"));
        }
        let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        // All files come from the commit that the revision names now, even if someone pushes meanwhile.
        let pinned = Repo::with_revision(self.base.to_string(), RepoType::Model, info.sha.clone());
        let snapshot = self.cache.repo(pinned.clone()).pointer_path(&info.sha);
        let remote = api.repo(pinned);
        for name in names.iter().filter(|name| cache::is_small_file(name)) {
            self.file(&api, &remote, &snapshot, name, progress)?;
        }
        if self.options.without_weights {
            // Not noted below, for it is not a whole model.
            return Ok(snapshot);
        }
        if names.contains(&cache::SINGLE) {
            self.file(&api, &remote, &snapshot, cache::SINGLE, progress)?;
        } else if names.contains(&cache::INDEX) {
            for shard in cache::shards(&snapshot)? {
                self.file(&api, &remote, &snapshot, &shard, progress)?;
            }
        } else if let Some(pickle) = names.iter().find(|name| name.starts_with("pytorch_model")) {
            return Err(Error::Pickle { path: Path::new(self.base).join(pickle) });
        } else if names.contains(&"adapter_config.json") {
            return Err(
                self.bad("is an adapter, not a base model; give the base model that it was trained on")
            );
        }
        // The name of the revision is noted last, so that a note always stands for a whole model.
        let note = self.cache.repo(repo).create_ref(&info.sha);
        note.map_err(Error::io("write a reference below", self.cache.path()))?;
        Ok(snapshot)
    }

    fn api(&self) -> Result<Api> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone())
            .with_progress(false)
            .with_user_agent("tunesmith", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &self.options.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
        }
        if let Some(token) = &self.options.token {
            builder = builder.with_token(Some(token.clone()));
        }
        builder.build().map_err(|error| self.explain(&error, ""))
    }

    fn file(
        &self,
        api: &Api,
        remote: &ApiRepo,
        snapshot: &Path,
        name: &str,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        if snapshot.join(name).exists() {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            let total = Cell::new(0);
            let bar = Bar { file: String::new(), done: 0, total: &total, report: progress };
            let error = match remote.download_with_progress(name, bar) {
                Ok(path) => return self.check_length(&path, name, total.get()),
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !may_pass(&error) {
                return Err(self.explain(&error, name));
            }
            if is_stale_part(&error) {
                self.remove_part(api, remote, name)?;
            }
            std::thread::sleep(Duration::from_millis(200 * attempt));
            attempt += 1;
        }
    }

    /// A file of another length than the Hub named must not stay in the cache, where it would be taken for whole.
    fn check_length(&self, path: &Path, name: &str, total: u64) -> Result<()> {
        let blob = path.canonicalize().map_err(Error::io("read", path))?;
        let length = blob.metadata().map_err(Error::io("read", &blob))?.len();
        if length == total {
            return Ok(());
        }
        for damaged in [path, &blob] {
            std::fs::remove_file(damaged).map_err(Error::io("remove the damaged file", damaged))?;
        }
        Err(self.bad(format!("`{name}` arrived with {length} of {total} bytes; try again")))
    }

    /// Removes what an interrupted download left of a file, when it cannot be continued.
    fn remove_part(&self, api: &Api, remote: &ApiRepo, name: &str) -> Result<()> {
        let metadata = api.metadata(&remote.url(name)).map_err(|error| self.explain(&error, name))?;
        let repo = Repo::model(self.base.to_string());
        let part = self.cache.repo(repo).blob_path(metadata.etag()).with_extension("part");
        std::fs::remove_file(&part).map_err(Error::io("remove", &part))
    }

    /// One sentence for what the Hub or the network answered. `file` is empty when it is about the repository.
    fn explain(&self, error: &ApiError, file: &str) -> Error {
        let (base, revision) = (self.base, self.revision);
        let subject = if file.is_empty() { "the repository".to_string() } else { format!("`{file}`") };
        let problem = match error {
            ApiError::RequestError(request) => match request.as_ref() {
                ureq::Error::StatusCode(404) => {
                    let what = if file.is_empty() { "such repository" } else { &subject };
                    format!("the Hub has no {what} at revision `{revision}`; check the name and the revision")
                }
                ureq::Error::StatusCode(code @ (401 | 403)) => format!(
                    "the Hub refuses access to {subject} (HTTP {code}); check the name, accept the licence on the \
                     page of `{base}` if it asks for that, and set HF_TOKEN to a token of your account"
                ),
                ureq::Error::StatusCode(429) => {
                    format!(
                        "the Hub answers that there were too many requests for {subject}; try again later"
                    )
                }
                ureq::Error::StatusCode(code) => format!("the Hub answered HTTP {code} for {subject}"),
                other => format!(
                    "cannot download {subject}: {other}; check the connection, or use offline mode with a cached model"
                ),
            },
            ApiError::LockAcquisition(path) => format!(
                "another process is downloading {subject} (it holds `{}`); wait for it and try again",
                path.display()
            ),
            ApiError::IoError(reason) => {
                format!("cannot download {subject} into `{}`: {reason}", self.cache.path().display())
            }
            other => format!("cannot download {subject}: {other}"),
        };
        self.bad(problem)
    }
}

/// Whether the same request may succeed a moment later: connections that broke, a busy server, a stale part file.
fn may_pass(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(request) => match request.as_ref() {
            ureq::Error::StatusCode(code) => *code == 429 || *code >= 500 || is_stale_part(error),
            _ => true,
        },
        ApiError::IoError(reason) => reason.kind() != std::io::ErrorKind::StorageFull,
        other => is_stale_part(other),
    }
}

/// The part file is complete already (the server then has no range left to send) or longer than the file.
fn is_stale_part(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(request) => matches!(request.as_ref(), ureq::Error::StatusCode(416)),
        other => matches!(other, ApiError::InvalidResume),
    }
}

/// Passes the progress of one file on.
struct Bar<'a> {
    file: String,
    done: u64,
    total: &'a Cell<u64>,
    report: &'a mut dyn FnMut(Download<'_>),
}

impl Bar<'_> {
    fn report(&mut self) {
        (self.report)(Download { file: &self.file, done: self.done, total: self.total.get() });
    }
}

impl Progress for Bar<'_> {
    /// Also called when a download starts again after an error.
    fn init(&mut self, size: usize, file: &str) {
        self.done = 0;
        self.total.set(size as u64);
        file.clone_into(&mut self.file);
        self.report();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.report();
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests;
