//! Where jobs are kept.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Error;

/// The workspace: `TUNESMITH_HOME`, or `tunesmith` in the platform's directory for a user's data.
pub fn home() -> Result<PathBuf, Error> {
    home_from(|name| std::env::var_os(name))
}

/// [`home`] with the environment as a function. Empty variables count as unset.
pub fn home_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let get = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = get("TUNESMITH_HOME") {
        return std::path::absolute(&home).map_err(Error::at("find", &home));
    }
    let data = if cfg!(windows) {
        get("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        get("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        // The base directory specification: a relative path is invalid and ignored.
        get("XDG_DATA_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| get("HOME").map(|home| home.join(".local/share")))
    };
    data.map(|data| data.join("tunesmith")).ok_or(Error::NoHome)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<PathBuf, Error> {
        home_from(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_most_specific_variable_wins() {
        let all = [("TUNESMITH_HOME", "/t"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(&all).unwrap(), PathBuf::from("/t"));
        assert_eq!(with(&all[1..]).unwrap(), PathBuf::from("/x/tunesmith"));
        assert_eq!(with(&all[2..]).unwrap(), PathBuf::from("/h/.local/share/tunesmith"));
        assert_eq!(
            with(&[("TUNESMITH_HOME", ""), ("XDG_DATA_HOME", "relative"), ("HOME", "/h")]).unwrap(),
            PathBuf::from("/h/.local/share/tunesmith")
        );
        assert!(with(&[("TUNESMITH_HOME", "here")]).unwrap().is_absolute());
        assert!(matches!(with(&[]), Err(Error::NoHome)));
    }
}
