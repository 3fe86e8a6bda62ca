//! `tunesmith data`.

use std::path::PathBuf;

use super::CheckArgs;
use clap::{Args, Subcommand, ValueEnum};
use tunesmith_data::{Format, TableName, TableRef};

/// The verbs of `tunesmith data`.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Check rows as a job would, and say what is wrong with them
    Check(Box<CheckArgs>),
    /// Load files, or the result of a query, as a named table
    Load(LoadArgs),
    /// List the tables and their snapshots
    Ls {
        /// Print one JSON list
        #[arg(long)]
        json: bool,
    },
    /// Show a table: columns, kinds, where it came from, first rows
    Show(ShowArgs),
    /// Run a query over the tables
    Sql(SqlArgs),
    /// Split a table into parts that share no row
    Split(SplitArgs),
    /// Write a table to a JSONL or CSV file
    Export(ExportArgs),
    /// Remove a table, or one snapshot of it
    Rm(RemoveArgs),
}

impl DataCommand {
    /// Whether standard output is to hold one JSON value.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Check(args) => args.json,
            Self::Load(args) => args.json,
            Self::Ls { json } => *json,
            Self::Show(args) => args.json,
            Self::Sql(args) => args.json,
            Self::Split(args) => args.json,
            Self::Export(args) => args.json,
            Self::Rm(args) => args.json,
        }
    }
}

/// `tunesmith data load`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data load tickets tickets.jsonl
  tunesmith data load tickets tickets.jsonl more.jsonl --replace
  tunesmith data load refunds \"select prompt, completion from tickets where topic = 'refund'\"

A table is an immutable snapshot: --replace makes NAME@2, NAME@3 and so on, and NAME means the newest.
One bad record ends the load, and nothing is kept of it.")]
pub(crate) struct LoadArgs {
    /// Name of the table: letters, digits and _, at most 63
    #[arg(value_parser = table_name)]
    pub(crate) name: TableName,
    /// Files to load, or one query
    #[arg(required = true, value_name = "URI")]
    pub(crate) uris: Vec<String>,
    /// Format of the files, where their names do not tell it
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Make a new snapshot of a table that exists
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith data show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data show tickets
  tunesmith data show tickets@1 --rows 20")]
pub(crate) struct ShowArgs {
    /// The table, or a snapshot of it
    #[arg(value_name = "NAME[@N]", value_parser = table_ref)]
    pub(crate) table: TableRef,
    /// How many rows to show
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) rows: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith data sql`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data sql \"select topic, count(*) as n from tickets group by topic order by n desc\"
  tunesmith data sql \"select * from \\\"tickets@1\\\"\" --limit 0 --csv > tickets.csv

Queries only read. The dialect is SQLite's, with its functions on text, numbers, dates and JSON; strings stand in
single quotes. An alias that ends in ::json or ::boolean says what an expression is:
  select json_array(prompt, completion) as \"pair::json\" from tickets")]
pub(crate) struct SqlArgs {
    /// The query
    #[arg(value_name = "SQL")]
    pub(crate) sql: String,
    /// Print at most so many rows; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
    /// Longest time in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
    /// Print one JSON object
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print CSV
    #[arg(long)]
    pub(crate) csv: bool,
}

/// `tunesmith data split`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data split tickets 0.8 0.2 --seed 7
  tunesmith data split tickets 0.8 0.2 --by ticket_id
  tunesmith data split tickets 8 1 1 --names train,validation,test

Two parts are called NAME_train and NAME_validation. Equal rows, or with --by rows with equal values, are never in
two parts; which part they are in depends on the seed and not on the order of the rows.")]
pub(crate) struct SplitArgs {
    /// The table, or a snapshot of it
    #[arg(value_name = "NAME[@N]", value_parser = table_ref)]
    pub(crate) table: TableRef,
    /// Size of each part; only the ratio counts
    #[arg(required = true, num_args = 2.., value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) weights: Vec<f64>,
    /// Seed: another one gives other parts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Column whose equal values stay together
    #[arg(long, value_name = "COLUMN")]
    pub(crate) by: Option<String>,
    /// Names of the parts
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = table_name)]
    pub(crate) names: Vec<TableName>,
    /// Make new snapshots of parts that exist
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print one JSON list
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith data export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data export tickets tickets.jsonl
  tunesmith data export tickets@1 old.csv --force

JSONL gives back every value as it was loaded. In CSV everything is text: lists and objects are JSON, null is empty.")]
pub(crate) struct ExportArgs {
    /// The table, or a snapshot of it
    #[arg(value_name = "NAME[@N]", value_parser = table_ref)]
    pub(crate) table: TableRef,
    /// The file, whose name ends in .jsonl or .csv
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith data rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data rm tickets
  tunesmith data rm tickets@1 -y")]
pub(crate) struct RemoveArgs {
    /// The table with all its snapshots, or one of them
    #[arg(value_name = "NAME[@N]", value_parser = table_ref)]
    pub(crate) table: TableRef,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Print one JSON list
    #[arg(long)]
    pub(crate) json: bool,
}

/// The formats that files may have.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormatArg {
    /// One JSON object a line
    Jsonl,
    /// A JSON array of objects
    Json,
    /// Comma-separated values with a header
    Csv,
    /// Tab-separated values with a header
    Tsv,
    /// Apache Parquet
    Parquet,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Jsonl => Self::Jsonl,
            FormatArg::Json => Self::Json,
            FormatArg::Csv => Self::Csv,
            FormatArg::Tsv => Self::Tsv,
            FormatArg::Parquet => Self::Parquet,
        }
    }
}

fn table_name(text: &str) -> Result<TableName, String> {
    TableName::parse(text).map_err(|e| e.to_string())
}

fn table_ref(text: &str) -> Result<TableRef, String> {
    TableRef::parse(text).map_err(|e| e.to_string())
}
