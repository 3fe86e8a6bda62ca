//! What a query may do: read the tables that a policy allows, with functions that only compute, in bounded time and
//! memory. SQLite asks the authorizer about every table, column, function and action while it compiles a statement.
//!
//! The policy is asked for the tables inside the database that hold the rows, however they were reached, and not for
//! views alone: the name of the view that SQLite gives as the one that asks can be forged with a CTE of that name.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;

use super::catalog::{Snapshot, SnapshotRef};
use super::name::{RESERVED, TABLE_FUNCTIONS};

/// Functions that compute their result from their arguments alone.
const FUNCTIONS: &str = "-> ->> abs avg char coalesce concat concat_ws count cume_dist date datetime dense_rank \
    first_value format glob group_concat hex if ifnull iif instr json json_array json_array_length \
    json_error_position json_extract json_group_array json_group_object json_insert json_object json_patch json_pretty \
    json_quote json_remove json_replace json_set json_type json_valid julianday lag last_value lead length like \
    likelihood likely lower ltrim max min nth_value ntile nullif octet_length percent_rank printf quote rank replace \
    round row_number rtrim sign soundex strftime string_agg substr substring sum time timediff total trim typeof \
    unhex unicode unistr unistr_quote unixepoch unlikely upper zeroblob";

/// Functions that give something else each time: good for a look, not for what a job trains on.
const UNREPEATABLE: &str = "current_date current_time current_timestamp random randomblob";

/// Who may read what: whether the table of this name may be read.
pub type MayRead = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What the authorizer saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The snapshots that the statement reads.
    pub(super) parents: BTreeSet<SnapshotRef>,
    /// Why it was refused.
    pub(super) refusal: Option<String>,
}

/// The authorizer of one connection.
pub(super) struct Guard {
    /// Snapshots by their table in the database.
    physical: BTreeMap<String, SnapshotRef>,
    /// Tables by the names of their views, in lower case.
    views: BTreeMap<String, String>,
    /// Tables and virtual tables that are SQLite's or the store's, in lower case.
    closed: HashSet<String>,
    functions: HashSet<&'static str>,
    repeatable: bool,
    may_read: MayRead,
    seen: Arc<Mutex<Seen>>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("views", &self.views).finish_non_exhaustive()
    }
}

/// Names of the functions that may be called.
pub(super) fn functions(repeatable: bool) -> impl Iterator<Item = &'static str> {
    let more = if repeatable { "" } else { UNREPEATABLE };
    FUNCTIONS.split_whitespace().chain(more.split_whitespace())
}

impl Guard {
    pub(super) fn new(
        connection: &Connection,
        snapshots: &[Snapshot],
        may_read: MayRead,
        repeatable: bool,
    ) -> rusqlite::Result<Self> {
        let mut guard = Self {
            physical: BTreeMap::new(),
            views: BTreeMap::new(),
            closed: names(
                connection,
                "SELECT name FROM sqlite_schema UNION SELECT name FROM pragma_module_list",
            )?,
            functions: functions(repeatable).collect(),
            repeatable,
            may_read,
            seen: Arc::default(),
        };
        for snapshot in snapshots {
            guard.physical.insert(snapshot.physical.to_ascii_lowercase(), snapshot.reference());
            guard.views.insert(snapshot.label().to_ascii_lowercase(), snapshot.name.clone());
            guard.views.insert(snapshot.name.to_ascii_lowercase(), snapshot.name.clone());
        }
        Ok(guard)
    }

    /// Lets the guard watch a connection; what it saw is found in the result.
    pub(super) fn watch(mut self, connection: &mut Connection) -> rusqlite::Result<Arc<Mutex<Seen>>> {
        for (limit, value) in [
            (Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20),
            (Limit::SQLITE_LIMIT_EXPR_DEPTH, 200),
            (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 200),
            (Limit::SQLITE_LIMIT_VDBE_OP, 1_000_000),
            (Limit::SQLITE_LIMIT_FUNCTION_ARG, 100),
            (Limit::SQLITE_LIMIT_ATTACHED, 0),
            (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
            (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 0),
            (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
        ] {
            connection.set_limit(limit, value)?;
        }
        let seen = Arc::clone(&self.seen);
        connection.authorizer(Some(move |context: AuthContext<'_>| self.decide(context)))?;
        Ok(seen)
    }

    fn decide(&mut self, context: AuthContext<'_>) -> Authorization {
        let refusal = match context.action {
            AuthAction::Select | AuthAction::Recursive => None,
            AuthAction::Read { table_name, .. } => self.read(table_name),
            AuthAction::Function { function_name } => self.function(function_name),
            AuthAction::Pragma { .. } => Some("it uses a pragma, but queries only read tables".to_owned()),
            AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
                Some("it attaches a database, but queries only read tables".to_owned())
            }
            _ => Some("it would change something, but queries only read; use SELECT".to_owned()),
        };
        match refusal {
            None => Authorization::Allow,
            Some(why) => {
                locked(&self.seen).refusal.get_or_insert(why);
                Authorization::Deny
            }
        }
    }

    fn read(&self, table: &str) -> Option<String> {
        let lower = table.to_ascii_lowercase();
        if let Some(snapshot) = self.physical.get(&lower) {
            locked(&self.seen).parents.insert(snapshot.clone());
            return self.policy(&snapshot.table);
        }
        if let Some(name) = self.views.get(&lower) {
            return self.policy(name);
        }
        if TABLE_FUNCTIONS.contains(&lower.as_str()) {
            return None;
        }
        let closed = self.closed.contains(&lower)
            || ["sqlite_", "pragma_", RESERVED].iter().any(|prefix| lower.starts_with(prefix));
        // What is left is a name that the query itself gave.
        closed.then(|| {
            format!("it reads `{table}`, which is no table of yours; `tunesmith data ls` lists them")
        })
    }

    fn policy(&self, name: &str) -> Option<String> {
        (!(self.may_read)(name)).then(|| format!("there is no right to read the table `{name}`; ask for it"))
    }

    fn function(&self, name: &str) -> Option<String> {
        let lower = name.to_ascii_lowercase();
        if self.functions.contains(lower.as_str()) {
            return None;
        }
        let unrepeatable = UNREPEATABLE.split_whitespace().any(|n| n == lower);
        Some(if self.repeatable && unrepeatable {
            not_repeatable(&lower)
        } else {
            format!(
                "the function `{name}` is not allowed; use SQLite's functions on text, numbers, dates and JSON"
            )
        })
    }
}

/// Why a function has no place in training data.
pub(super) fn not_repeatable(what: &str) -> String {
    format!(
        "`{what}` gives other rows each time, but training data must be the same again; load the result as a table, or leave it out"
    )
}

fn names(connection: &Connection, sql: &str) -> rusqlite::Result<HashSet<String>> {
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], |row| Ok(row.get::<_, String>(0)?.to_ascii_lowercase()))?.collect()
}

/// A lock whose holder cannot leave anything half done.
pub(super) fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
