//! What the user's words name: files, directories, patterns, standard input, objects and web addresses.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::format::{KNOWN, Packing, by_name};
use super::remote::Address;
use super::{Format, SourceError, SourceOptions};
use crate::error::Error;

/// How many names a note lists.
const LISTED: usize = 5;

/// Where the bytes of a file are.
#[derive(Debug, Clone)]
pub(super) enum Location {
    Stdin,
    Path(PathBuf),
    Remote(Address),
}

/// One file to read.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// As the user knows it.
    pub(super) name: String,
    pub(super) location: Location,
    pub(super) format: Format,
    pub(super) packing: Packing,
}

/// The files, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) items: Vec<Item>,
    pub(super) notes: Vec<String>,
    seen: HashMap<String, String>,
}

impl Found {
    /// Finds all that `uris` name, in that order.
    pub(super) fn of(uris: &[String], options: &SourceOptions) -> Result<Self, Error> {
        let mut found = Self::default();
        for uri in uris {
            found.add(uri, options)?;
        }
        Ok(found)
    }

    fn add(&mut self, uri: &str, options: &SourceOptions) -> Result<(), Error> {
        if uri == "-" {
            let format = options.format.unwrap_or(Format::Jsonl);
            let (location, packing) = (Location::Stdin, Packing::Plain);
            return self.push("-".to_owned(), Item { name: uri.to_owned(), location, format, packing });
        }
        if uri.contains("://") {
            return self.remote(uri, options);
        }
        let path = Path::new(uri);
        match std::fs::metadata(path) {
            Ok(facts) if facts.is_dir() => self.directory(path, options),
            Ok(_) => self.file(path, options),
            Err(_) if uri.contains(['*', '?', '[']) => self.pattern(uri, options),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    fn push(&mut self, identity: String, item: Item) -> Result<(), Error> {
        if item.format == Format::Parquet && item.packing != Packing::Plain {
            let what =
                "Parquet is compressed inside and cannot be read through another compression; unpack it";
            return Err(SourceError::Address { name: item.name, what: what.to_owned() }.into());
        }
        if item.format == Format::Sql {
            let what = "a file cannot have the format sql; choose jsonl, json, csv, tsv or parquet";
            return Err(SourceError::Address { name: item.name, what: what.to_owned() }.into());
        }
        if let Some(first) = self.seen.insert(identity, item.name.clone()) {
            return Err(SourceError::Twice { first, second: item.name }.into());
        }
        self.items.push(item);
        Ok(())
    }

    fn file(&mut self, path: &Path, options: &SourceOptions) -> Result<(), Error> {
        let name = path.display().to_string();
        let (format, packing) = kind(&name, options)?;
        let identity = std::fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
        let item = Item { name, location: Location::Path(path.to_owned()), format, packing };
        self.push(identity.display().to_string(), item)
    }

    /// The files in a directory, sorted by name; not those in directories below.
    fn directory(&mut self, path: &Path, options: &SourceOptions) -> Result<(), Error> {
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut paths: Vec<PathBuf> =
            entries.map_err(|e| Error::io(path, e))?.into_iter().map(|e| e.path()).collect();
        paths.sort();
        self.some_of(&path.display().to_string(), paths, options)
    }

    fn pattern(&mut self, pattern: &str, options: &SourceOptions) -> Result<(), Error> {
        // `**` alone matches directories only; who writes it last means the files in them.
        let all = pattern.rsplit('/').next().is_some_and(|last| last == "*" || last == "**");
        let spelled = if pattern.ends_with("**") { format!("{pattern}/*") } else { pattern.to_owned() };
        let hidden =
            glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::default() };
        let matches = glob::glob_with(&spelled, hidden).map_err(|e| SourceError::Address {
            name: pattern.to_owned(),
            what: format!("not a pattern ({} at character {}); correct it", e.msg, e.pos + 1),
        })?;
        let mut paths = Vec::new();
        for path in matches {
            let path = path.map_err(|e| {
                let at = e.path().to_owned();
                Error::io(&at, e.into())
            })?;
            if !path.is_dir() {
                paths.push(path);
            }
        }
        paths.sort();
        if all {
            return self.some_of(pattern, paths, options);
        }
        if paths.is_empty() {
            return Err(no_files(pattern, "no file matches").into());
        }
        paths.iter().try_for_each(|path| self.file(path, options))
    }

    /// Those of `paths` that are data. The rest is noted.
    fn some_of(&mut self, name: &str, paths: Vec<PathBuf>, options: &SourceOptions) -> Result<(), Error> {
        let (mut kept, mut left) = (Vec::new(), Vec::new());
        for path in paths {
            let base = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !base.starts_with('.') && !path.is_dir() && is_data(&base, options) {
                kept.push(path);
            } else {
                left.push(base);
            }
        }
        self.note(name, &left);
        if kept.is_empty() {
            return Err(no_files(name, &listed(&left)).into());
        }
        kept.iter().try_for_each(|path| self.file(path, options))
    }

    fn note(&mut self, name: &str, left: &[String]) {
        if !left.is_empty() {
            self.notes.push(format!("`{name}`: left out {}", listed(left)));
        }
    }

    fn remote(&mut self, uri: &str, options: &SourceOptions) -> Result<(), Error> {
        let address = Address::parse(uri, &options.network)?;
        let Some(listing) = address.list(&options.network)? else {
            let name = address.name();
            let (format, packing) = kind(address.path(), options)?;
            let item = Item { name, location: Location::Remote(address.clone()), format, packing };
            return self.push(address.identity(), item);
        };
        let name = address.name();
        if listing.addresses.is_empty() {
            return Err(no_files(&name, "no object matches").into());
        }
        let (mut kept, mut left) = (Vec::new(), Vec::new());
        for object in listing.addresses {
            let base = object.path().rsplit('/').next().unwrap_or_default().to_owned();
            if listing.explicit || (!base.starts_with('.') && is_data(&base, options)) {
                kept.push(object);
            } else {
                left.push(base);
            }
        }
        self.note(&name, &left);
        if kept.is_empty() {
            return Err(no_files(&name, &listed(&left)).into());
        }
        kept.into_iter().try_for_each(|object| {
            let (format, packing) = kind(object.path(), options)?;
            let (name, identity) = (object.name(), object.identity());
            self.push(identity, Item { name, location: Location::Remote(object), format, packing })
        })
    }
}

/// What a file named on its own is: its format is told by its name, or else by the user.
fn kind(name: &str, options: &SourceOptions) -> Result<(Format, Packing), Error> {
    let (format, packing) = by_name(name);
    let format = options.format.or(format);
    let unknown = || SourceError::UnknownFormat { name: name.to_owned(), known: KNOWN };
    Ok((format.ok_or_else(unknown)?, packing))
}

/// Whether one of many files is meant: one whose ending is known, and is the format's when that is set.
fn is_data(base: &str, options: &SourceOptions) -> bool {
    by_name(base).0.is_some_and(|format| options.format.is_none_or(|wanted| wanted == format))
}

fn no_files(name: &str, found: &str) -> SourceError {
    let found = if found.is_empty() { "it is empty" } else { found };
    SourceError::NoFiles { name: name.to_owned(), found: found.to_owned(), known: KNOWN }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let more = if names.len() > LISTED { ", …" } else { "" };
    let shown = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let entries = if names.len() == 1 { "entry" } else { "entries" };
    format!("{} other {entries}: {shown}{more}", names.len())
}
