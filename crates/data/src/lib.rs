//! Rows, chat templates, tokens, loss masks and splits. Knows no tensors.

mod dataset;
mod encode;
mod error;
mod example;
mod rows;
mod sip;
mod source;
mod split;
mod template;
mod tokenizer;

pub use dataset::{Counted, DataReport, Dataset, LoadOptions, load};
pub use encode::{BosRule, EncodedRow, Encoder, Prompt, TemplateChoice};
pub use error::{Error, RowError, Spot};
pub use example::Example;
pub use rows::{Columns, MAX_LINE_BYTES, Message, Row, RowContent, read_rows};
pub use source::{
    FileFacts, Format, Limits, Network, Place, Raw, Record, RecordReader, Records, SourceError,
    SourceOptions, parse_object,
};
pub use split::{Split, split};
pub use template::{ChatTemplate, Now, Rendered, SpecialTokens};
pub use tokenizer::{DecodeStream, TextTokenizer, Tokens};
