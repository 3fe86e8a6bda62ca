//! Rows, chat templates, tokens, loss masks and splits. Knows no tensors.

mod dataset;
mod encode;
mod error;
mod example;
mod rows;
mod sip;
mod source;
mod split;
mod tables;
mod template;
mod tokenizer;

pub use dataset::{Counted, DataReport, Dataset, LoadOptions, load};
pub use encode::{BosRule, EncodedRow, Encoder, Prompt, TemplateChoice};
pub use error::{Error, RowError};
pub use example::Example;
pub use rows::{Columns, MAX_LINE_BYTES, Message, Row, RowContent, read_rows};
pub use source::{FileFacts, Format, Place, Raw, Record, RecordReader, Records, SourceOptions};
pub use split::{Split, split};
pub use tables::{
    Column, Exported, Kind, LoadOrigin, MayRead, Origin, QueryLimits, QueryOptions, Snapshot, SnapshotRef,
    SplitOptions, TableError, TableName, TableRef, TableRows, Tables, TrainingData, open_training_data,
};
pub use template::{ChatTemplate, Now, Rendered, SpecialTokens};
pub use tokenizer::{DecodeStream, TextTokenizer, Tokens};
