//! What can be wrong with a source as a whole.

/// A fault behind which nothing of a source can be read. Every message says what, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A pattern, directory or prefix names no file that can be read.
    #[error("`{name}` names no data ({found}); correct it, or name a file with one of the endings {known}")]
    NoFiles {
        /// As the user wrote it.
        name: String,
        /// What is there instead.
        found: String,
        /// The endings that are read.
        known: &'static str,
    },
    /// A pattern, address or option that cannot be understood.
    #[error("`{name}`: {what}")]
    Address {
        /// As the user wrote it, without credentials.
        name: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The name does not tell the format, and nothing else does.
    #[error(
        "the name `{name}` does not tell the format; rename the file to one of the endings {known}, or set the format"
    )]
    UnknownFormat {
        /// The file.
        name: String,
        /// The endings that are read.
        known: &'static str,
    },
    /// One file is named twice, so each of its rows would count twice.
    #[error("`{second}` is the same file as `{first}`, so its rows would count twice; name it once")]
    Twice {
        /// The file as first named.
        first: String,
        /// The file as named again.
        second: String,
    },
    /// A server refused, failed, or went away.
    #[error("`{name}`: {what}")]
    Network {
        /// The address, without credentials.
        name: String,
        /// What happened and what to do.
        what: String,
    },
    /// The bytes are of another kind than the name says.
    #[error("`{name}` is {found}, but its name says {says}; {fix}")]
    WrongKind {
        /// The file.
        name: String,
        /// What the first bytes show.
        found: &'static str,
        /// What the name shows.
        says: &'static str,
        /// What to do.
        fix: String,
    },
    /// A compressed stream is damaged or ends too early.
    #[error(
        "`{name}`: the {packing} stream is damaged or cut off behind line {line} ({what}); compress or fetch the file again"
    )]
    Packed {
        /// The file.
        name: String,
        /// The compression.
        packing: &'static str,
        /// Last whole line read.
        line: u64,
        /// The decompressor's reason.
        what: String,
    },
    /// A file grows beyond what is reasonable when it is unpacked.
    #[error("`{name}`: {what}")]
    TooLarge {
        /// The file.
        name: String,
        /// Which bound, and what to do.
        what: String,
    },
    /// The shape of the file around its records is broken.
    #[error("`{name}`:{line}: {what}")]
    Structure {
        /// The file.
        name: String,
        /// One-based line.
        line: u64,
        /// What is wrong there and what to do.
        what: String,
    },
    /// A column of a Parquet file whose type is not read.
    #[error(
        "`{name}`: column `{column}` has the Parquet type {kind}, which cannot be read; leave the column out or convert it to text"
    )]
    ColumnType {
        /// The file.
        name: String,
        /// Dotted path of the column.
        column: String,
        /// Its type.
        kind: String,
    },
    /// A Parquet file is damaged.
    #[error("`{name}`: the Parquet file is damaged {at} ({what}); write or fetch it again")]
    Parquet {
        /// The file.
        name: String,
        /// Where.
        at: String,
        /// The library's reason.
        what: String,
    },
}
