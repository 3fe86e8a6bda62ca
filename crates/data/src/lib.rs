//! Rows, chat templates, tokens, loss masks and splits. Knows no tensors.

pub mod check;
mod dataset;
mod encode;
mod error;
mod example;
mod hex;
mod over_long;
mod pack;
mod rows;
mod sip;
mod snippet;
mod source;
mod split;
mod spool;
mod store;
mod tables;
mod template;
mod tokenizer;

pub use dataset::{BadRow, Counted, DataReport, Dataset, Fate, PrepareOptions, Prepared, load, prepare};
pub use encode::{BosRule, ControlText, EncodedRow, Encoder, Prompt, TemplateChoice};
pub use error::{Error, RowError, Spot};
pub use example::{Example, Examples};
pub use hex::hex;
pub use over_long::OverLong;
pub use pack::{Utilisation, pack, utilisation};
pub use rows::{Columns, MAX_LINE_BYTES, Message, Parsed, Row, RowContent, Shape, read_rows};
pub use source::{
    FileFacts, Format, Limits, Network, Place, Raw, Record, RecordReader, Records, SourceError,
    SourceOptions, parse_object,
};
pub use split::{Split, split};
pub use spool::{Spool, SpoolWriter};
pub use store::{Part, TokenStore, TokenStoreWriter};
pub use tables::{
    Column, Exported, Kind, LoadOrigin, MayRead, Origin, QueryLimits, QueryOptions, Snapshot, SnapshotRef,
    SplitOptions, TableError, TableName, TableRef, TableRows, Tables, TrainingData, open_training_data,
};
pub use template::{ChatTemplate, Now, Rendered, SpecialTokens, TemplateHelper, serve_templates};
pub use tokenizer::{DecodeStream, TextTokenizer, Tokens};
