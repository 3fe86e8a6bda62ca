//! Where the Hub and its cache are, with the environment variables that all Hugging Face tools share.

use std::path::PathBuf;

/// How base models are found on the Hugging Face Hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubOptions {
    /// Branch, tag or commit; None means `main`.
    pub revision: Option<String>,
    /// Use the cache alone and never connect.
    pub offline: bool,
    /// Directory that holds `models--organisation--name` folders; None means the environment's or the usual one.
    pub cache_dir: Option<PathBuf>,
    /// Address of the Hub; None means `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Access token; None means the one in the cache's `token` file, if any.
    pub token: Option<String>,
}

impl HubOptions {
    /// The options that the environment gives: `HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_ENDPOINT`, `HF_TOKEN`.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = get("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| get("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface")));
        let token_file =
            |path: PathBuf| std::fs::read_to_string(path).ok().map(|text| text.trim().to_string());
        Self {
            revision: None,
            offline: get("HF_HUB_OFFLINE")
                .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")),
            cache_dir: get("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("hub"))),
            endpoint: get("HF_ENDPOINT"),
            // With HF_HUB_CACHE set the token lies in HF_HOME still, not beside the cache.
            token: get("HF_TOKEN")
                .or_else(|| {
                    token_file(
                        get("HF_TOKEN_PATH").map_or(home.or_else(usual_home)?.join("token"), Into::into),
                    )
                })
                .filter(|token| !token.is_empty()),
        }
    }

    /// The directory of the cache; None when nothing names it and there is no home directory.
    pub(super) fn cache_dir(&self) -> Option<PathBuf> {
        let dir = self.cache_dir.clone().or_else(|| Some(usual_home()?.join("hub")))?;
        // The links inside the cache are computed between absolute paths.
        std::path::absolute(dir).ok()
    }
}

fn usual_home() -> Option<PathBuf> {
    Some(std::env::home_dir()?.join(".cache").join("huggingface"))
}
