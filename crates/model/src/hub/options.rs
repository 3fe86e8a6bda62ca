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
    /// Everything but the weights is enough.
    pub without_weights: bool,
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
            without_weights: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_lookup(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_string()))
    }

    #[test]
    fn the_environment_is_honoured() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let text = home.path().to_str().unwrap();
        let given = options(&[("HF_HOME", text), ("HF_ENDPOINT", "http://mirror"), ("HF_HUB_OFFLINE", "1")]);
        let expected = HubOptions {
            revision: None,
            offline: true,
            cache_dir: Some(home.path().join("hub")),
            endpoint: Some("http://mirror".into()),
            without_weights: false,
            token: Some("hf_file".into()),
        };
        assert_eq!(given, expected);
        let more = options(&[("HF_HOME", text), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", " hf_env ")]);
        assert_eq!((more.cache_dir, more.token), (Some("/c".into()), Some("hf_env".into())));
        let xdg = options(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!((xdg.cache_dir, xdg.offline), (Some("/x/huggingface/hub".into()), false));
        assert!(["TRUE", "yes", "On"].iter().all(|v| options(&[("HF_HUB_OFFLINE", v)]).offline));
        assert!(!options(&[("HF_HUB_OFFLINE", "no")]).offline);
    }
}
