//! SQL over tables: what it gives, what it may not do, and what it says.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tunesmith_data::{
    Error, Format, LoadOrigin, Origin, QueryLimits, QueryOptions, RecordReader, Records, SourceOptions,
    TableError, TableName, TableRef, Tables, TrainingData, open_training_data,
};

struct Bench {
    dir: tempfile::TempDir,
    tables: Tables,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tables = Tables::open(&dir.path().join("tables.sqlite")).unwrap();
        let mut bench = Self { dir, tables };
        bench.load(
            "tickets",
            &[
                json!({"id": "007", "prompt": "p1", "completion": "c1", "ok": true, "tags": ["a", {"x": 1}], "n": 1}),
                json!({"id": "008", "prompt": "p2", "completion": "c2", "ok": false, "tags": null, "n": 2.5}),
                json!({"id": "009", "prompt": "p3", "completion": "c3", "n": 3}),
            ],
        );
        bench.load("secret", &[json!({"password": "x"})]);
        bench
    }

    fn load(&mut self, name: &str, rows: &[Value]) {
        let file = self.dir.path().join("rows.jsonl");
        std::fs::write(
            &file,
            rows.iter().flat_map(|row| [row.to_string(), "\n".to_owned()]).collect::<String>(),
        )
        .unwrap();
        let mut records = Records::open(&[file.display().to_string()], &SourceOptions::default()).unwrap();
        let name = TableName::parse(name).unwrap();
        let go_on = |_| ControlFlow::Continue(());
        self.tables.load(&name, &mut records, LoadOrigin::Files, true, go_on).unwrap().unwrap();
    }

    fn rows_with(&self, sql: &str, options: &QueryOptions) -> Result<Vec<Value>, Error> {
        let mut rows = self.tables.query(sql, options)?;
        let mut found = Vec::new();
        while let Some(record) = rows.next_record()? {
            found.push(Value::Object(record.raw.unwrap().into_object().unwrap()));
        }
        Ok(found)
    }

    fn rows(&self, sql: &str) -> Vec<Value> {
        self.rows_with(sql, &QueryOptions::default()).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    fn error(&self, sql: &str) -> Error {
        self.rows_with(sql, &QueryOptions::default()).expect_err(sql)
    }

    fn sentence(&self, sql: &str) -> String {
        self.error(sql).to_string()
    }
}

#[test]
fn columns_keep_their_kinds_and_expressions_say_theirs() {
    let bench = Bench::new();
    assert_eq!(
        bench.rows("select * from tickets where id = '007'"),
        [
            json!({"id": "007", "prompt": "p1", "completion": "c1", "ok": true, "tags": ["a", {"x": 1}], "n": 1})
        ]
    );
    assert_eq!(
        bench.rows("select id, tags, ok, n from \"tickets@1\" where id > '007' order by id desc"),
        [
            json!({"id": "009", "tags": null, "ok": null, "n": 3}),
            json!({"id": "008", "tags": null, "ok": false, "n": 2.5})
        ]
    );
    assert_eq!(
        bench.rows("select x, y from (select ok as x, tags as y from tickets limit 1)"),
        [json!({"x": true, "y": ["a", {"x": 1}]})]
    );
    assert_eq!(
        bench.rows(
            "select json_array(prompt, n) as \"pair::json\", json_array(n) as text, n > 1 as \"big::boolean\", n > 1 as b
             from tickets limit 1"
        ),
        [json!({"pair": ["p1", 1], "text": "[1]", "big": false, "b": 0})]
    );
    assert_eq!(bench.rows("select count(*) as n from tickets"), [json!({"n": 3})]);
    assert_eq!(bench.rows("select value from tickets, json_each(tags) limit 1"), [json!({"value": "a"})]);
    assert_eq!(bench.rows("select tags ->> '$[1].x' as x from tickets where x"), [json!({"x": 1})]);
    assert_eq!(bench.rows("values (1, 'a')"), [json!({"column1": 1, "column2": "a"})]);
    assert!(!bench.rows("explain query plan select * from tickets").is_empty());
    assert_eq!(
        bench.rows(
            "with recursive r(i) as (select 1 union all select i + 1 from r where i < 4), s as (select sum(i) as t from r)
             select t, row_number() over (order by t) as k from s;"
        ),
        [json!({"t": 10, "k": 1})]
    );
}

#[test]
fn only_tables_that_may_be_read_are_read() {
    let bench = Bench::new();
    let options = QueryOptions {
        may_read: Arc::new(|name| name.eq_ignore_ascii_case("tickets")),
        ..QueryOptions::default()
    };
    assert_eq!(bench.rows_with("select count(*) as n from tickets", &options).unwrap(), [json!({"n": 3})]);
    let physical = {
        let raw = rusqlite::Connection::open(bench.tables.path()).unwrap();
        let sql = "select physical from _tunesmith_snapshot where columns like '%password%'";
        raw.query_row(sql, [], |r| r.get::<_, String>(0)).unwrap()
    };
    for sql in [
        "select * from secret".to_owned(),
        "select 1 from secret".to_owned(),
        "select count(*) from secret".to_owned(),
        "select password as p from \"SECRET@1\"".to_owned(),
        "select * from main.secret".to_owned(),
        "select (select password from secret) as p".to_owned(),
        "select * from tickets where exists (select 1 from secret)".to_owned(),
        "select t.id from tickets t, secret".to_owned(),
        "select t.id from tickets t left join secret s on s.password = t.id".to_owned(),
        "with a as (select * from secret) select count(*) as n from a".to_owned(),
        "select x.password from secret as x".to_owned(),
        "select id from tickets union select password from secret".to_owned(),
        "select id from tickets order by (select password from secret)".to_owned(),
        "select * from tickets where id in secret".to_owned(),
        format!("select * from {physical}"),
        format!("with tickets as (select * from {physical}) select * from tickets"),
        format!("with tickets as (select 1 from {physical}) select count(*) as n from tickets"),
    ] {
        let error = bench.rows_with(&sql, &options).expect_err(&sql);
        assert!(matches!(error, Error::Table(TableError::Refused { .. })), "{sql}: {error}");
        assert_eq!(
            error.to_string(),
            "the query is refused: there is no right to read the table `secret`; ask for it",
            "{sql}"
        );
    }
    // Nor do suggestions name it.
    let error = bench.rows_with("select * from secrets", &options).unwrap_err().to_string();
    assert!(error.contains("`secrets`") && !error.contains("`secret`"), "{error}");
    let refused = open_training_data(
        &TrainingData::parse("secret", Some(&bench.tables)).unwrap(),
        Some(&bench.tables),
        &options,
        &SourceOptions::default(),
    );
    assert!(refused.unwrap_err().to_string().contains("no right to read"));
}

#[test]
fn nothing_but_reading_is_possible() {
    let bench = Bench::new();
    let before = std::fs::read(bench.tables.path()).unwrap();
    for sql in [
        "insert into tickets values (1)",
        "with a as (select 1) insert into _tunesmith_table select 1, 'x', 1",
        "with a as (select 1) delete from _tunesmith_snapshot",
        "explain delete from _tunesmith_snapshot",
        "update tickets set id = 1",
        "drop view tickets",
        "create table x (a)",
        "create temp table x (a)",
        "attach 'x.sqlite' as x",
        "detach main",
        "pragma user_version",
        "explain pragma user_version",
        "explain attach 'x.sqlite' as x",
        "explain detach main",
        "explain begin",
        "explain savepoint x",
        "explain vacuum",
        "explain create temp table x (a)",
        "explain create virtual table x using fts5 (a)",
        "explain insert into tickets values (1)",
        "begin",
        "commit",
        "vacuum",
        "vacuum into 'x.sqlite'",
        "reindex",
        "analyze",
        "select 1; drop view tickets",
        "select load_extension('x')",
        "select readfile('/etc/passwd') as f",
        "select writefile('x', 'y') as f",
        "select fts3_tokenizer('simple') as f",
        "select sqlite_version() as v",
        "select sqlite_compileoption_get(1) as v",
        "select * from sqlite_schema",
        "select * from sqlite_master",
        "select * from sqlite_temp_master",
        "select 1 from sqlite_schema",
        "select sql from main.sqlite_schema",
        "select * from _tunesmith_table",
        "select count(*) as n from _tunesmith_snapshot",
        "select * from pragma_table_info('tickets')",
        "select 1 from pragma_database_list",
        "select * from pragma_user_version",
        "select * from dbstat",
        "select 1 from dbstat",
        "select * from fts3tokenize",
        "select last_insert_rowid() as r",
    ] {
        let error = bench.error(sql);
        assert!(
            matches!(&error, Error::Table(TableError::Refused { .. } | TableError::Sql { .. })),
            "{sql}: {error:?}"
        );
        println!("{sql}: {error}");
    }
    assert_eq!(std::fs::read(bench.tables.path()).unwrap(), before);
    assert_eq!(
        bench.sentence("delete from tickets"),
        "the query is refused: it begins with `delete`, but queries only read; use SELECT, WITH, VALUES or EXPLAIN"
    );
    assert_eq!(
        bench.sentence("select 1; select 2"),
        "the query is refused: it has more than one statement; send one at a time"
    );
    assert_eq!(
        bench.sentence("select * from sqlite_schema"),
        "the query is refused: it reads `sqlite_master`, which is no table of yours; `tunesmith data ls` lists them"
    );
}

#[test]
fn what_grows_without_bound_is_stopped() {
    let bench = Bench::new();
    let limits = QueryLimits { time: Duration::from_millis(50), ..QueryLimits::default() };
    let quick = QueryOptions { limits, ..QueryOptions::default() };
    for sql in [
        "with recursive r(i) as (select 1 union all select i + 1 from r) select count(*) as n from r",
        "with recursive r(i) as (select 1 union all select i + 1 from r) select i from r where i < 0",
        "with recursive r(i) as (select 1 union all select i + 1 from r limit 100000000) select max(i) as m from r",
    ] {
        assert_eq!(
            bench.rows_with(sql, &quick).unwrap_err().to_string(),
            "the query was stopped: it ran longer than 0.05 s; filter more, or allow it more time"
        );
    }
    for sql in [
        "select printf('%1000000000d', 1) as x",
        "select hex(zeroblob(1000000000)) as x",
        "select hex(randomblob(60000000)) as x",
        "select replace(printf('%1000000d', 1), ' ', printf('%1000d', 1)) as x",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 1000)
         select group_concat(printf('%1000000d', i)) as x from r",
        "with recursive r(x) as (select 'aaaaaaaaaaaaaaaa' union all select x || x from r) select length(max(x)) as n from r",
    ] {
        let error = bench.error(sql);
        assert!(matches!(error, Error::Table(TableError::Limit { .. })), "{sql}: {error}");
    }
    // A row of many values, each small enough.
    let many: Vec<_> = (0..4).map(|i| format!("printf('%20000000d', 1) as c{i}")).collect();
    let error = bench.error(&format!("select {}", many.join(", ")));
    assert!(matches!(error, Error::Table(TableError::Limit { .. })), "{error}");
    let deep = format!("select {}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(matches!(bench.error(&deep), Error::Table(TableError::Sql { .. })));
    assert!(matches!(
        bench.error(&format!("select 1 {}", "union all select 1 ".repeat(500))),
        Error::Table(_)
    ));
    assert!(matches!(bench.error("select ?1"), Error::Table(TableError::Sql { .. })));
}

#[test]
fn caps_on_rows_and_bytes_are_errors() {
    let bench = Bench::new();
    let capped = |rows, bytes| QueryOptions {
        limits: QueryLimits { rows, bytes, ..QueryLimits::default() },
        ..QueryOptions::default()
    };
    let sql = "select id from tickets";
    assert_eq!(bench.rows_with(sql, &capped(Some(3), Some(9))).unwrap().len(), 3);
    assert_eq!(
        bench.rows_with(sql, &capped(Some(2), None)).unwrap_err().to_string(),
        "the query was stopped: it has more than 2 rows; add a LIMIT"
    );
    assert_eq!(
        bench.rows_with(sql, &capped(None, Some(8))).unwrap_err().to_string(),
        "the query was stopped: its rows have more than 8 bytes; select fewer columns or rows"
    );
}

#[test]
fn mistakes_are_explained() {
    let bench = Bench::new();
    for (sql, sentence) in [
        ("select * form tickets", "SQL does not expect `form` here (column 10); check what stands before it"),
        ("select * from", "it ends too early; complete it"),
        ("", "it is empty; write a SELECT"),
        (
            "select * from tikets",
            "there is no table `tikets`, perhaps you mean `tickets`; the tables are `secret`, `tickets`",
        ),
        (
            "select promt\nfrom tickets",
            "there is no column `promt` (line 1, column 8), perhaps you mean `prompt`; the columns are `completion`, `id`, `n`, `ok`, `prompt`, `tags`",
        ),
        (
            "select t.\"promt\" from tickets t",
            "there is no column `t.promt` (column 8), perhaps you mean `prompt`; the columns are `completion`, `id`, `n`, `ok`, `prompt`, `tags`",
        ),
        ("select \"p1\"", "there is no column `p1` (column 8); strings stand in single quotes"),
        (
            "select lenght(id) from tickets",
            "there is no function `lenght` (column 8), perhaps you mean `length`; use one of SQLite's own",
        ),
        (
            "select id from tickets a, tickets b",
            "`id` is a column of more than one table (column 8); write TABLE.id",
        ),
        ("select 'abc", "unrecognized token: `'abc` (column 8); check the quotes"),
        (
            "select id, id from tickets",
            "two result columns are called `id`; give one of them an alias with AS",
        ),
        ("select json('{') as x", "malformed JSON; correct it"),
    ] {
        assert_eq!(bench.sentence(sql), format!("the query is wrong: {sentence}"), "{sql}");
    }
    for (sql, sentence) in [
        (
            "select 9e999 as x",
            "row 1 of the query: the column `x` is the number inf, which JSON does not have; leave such rows out",
        ),
        (
            "select x'00' as x",
            "row 1 of the query: the column `x` is a blob, which JSON does not have; use `hex(x)` or `cast(x as text)`",
        ),
        (
            "select tags from tickets where tags is not null union all select 'x'",
            "row 2 of the query: the column `tags` is declared json but holds text that is no JSON; use `cast(x as text)` for the text",
        ),
    ] {
        assert_eq!(bench.sentence(sql), sentence);
    }
}

#[test]
fn a_text_is_a_query_a_table_or_a_path() {
    let bench = Bench::new();
    let parse = |text: &str| TrainingData::parse(text, Some(&bench.tables)).unwrap();
    let path = |text: &str| TrainingData::Path(vec![text.to_owned()]);
    for query in ["select * from tickets", "\n SELECT(1)", "With a as (select 1) select * from a"] {
        assert_eq!(parse(query), TrainingData::Query(query.to_owned()));
    }
    for name in ["tickets", "TICKETS@1", "unknown"] {
        assert_eq!(parse(name), TrainingData::Table(TableRef::parse(name).unwrap()));
    }
    for name in
        ["tickets.jsonl", "./tickets", "data/*", "tickets*", "select", "s3://b/k", "-", "ä", "with-rows"]
    {
        assert_eq!(parse(name), path(name));
    }
    assert!(path("x").needs_tables() != parse("tickets").needs_tables());
}

#[test]
fn training_data_is_one_moment_with_its_hash() {
    let mut bench = Bench::new();
    let options = QueryOptions { repeatable: true, ..QueryOptions::default() };
    let open = |bench: &Bench, text: &str| {
        let data = TrainingData::parse(text, Some(&bench.tables))?;
        open_training_data(&data, Some(&bench.tables), &options, &SourceOptions::default())
    };
    let (mut records, parents) = open(&bench, "tickets").unwrap();
    let batch = records.next_batch(10, 1 << 20).unwrap();
    assert_eq!(batch.len(), 3);
    assert_eq!(records.name(batch[2].place), "tickets@1");
    let facts = records.files().remove(0);
    let snapshot = bench.tables.find(&TableRef::parse("tickets").unwrap()).unwrap();
    assert_eq!((facts.format, facts.records), (Format::Sql, 3));
    assert_eq!((&facts.name, &facts.sha256), (&"tickets@1".to_owned(), &snapshot.sha256));
    assert_eq!(parents, [snapshot.reference()]);
    // The third row has neither tags nor ok.
    assert_eq!(batch[2].raw.clone().unwrap().into_object().unwrap().len(), 4);

    let sql = "select prompt, completion from tickets where id in (select id from \"tickets@1\")";
    let hash = |bench: &Bench| {
        let (mut records, parents) = open(bench, sql).unwrap();
        let rows = records.next_batch(10, 1 << 20).unwrap().len();
        assert!(records.next_batch(10, 1).unwrap().is_empty());
        let facts = records.files().remove(0);
        assert_eq!((facts.name.as_str(), facts.records, facts.bytes > 0), (sql, rows as u64, rows > 0));
        (facts.sha256, parents.len())
    };
    let first = hash(&bench);
    assert_eq!((hash(&bench), first.1), (first.clone(), 1));
    bench.load("tickets", &[json!({"id": "1", "prompt": "p", "completion": "c"})]);
    let second = hash(&bench);
    assert!(second.0 != first.0 && second.1 == 2);

    for (sql, word) in [
        ("select id from tickets order by random()", "random"),
        ("select hex(randomblob(4)) as x", "randomblob"),
        ("select current_date as d", "current_date"),
        ("select date('now') as d", "now"),
    ] {
        let sentence = open(&bench, sql).unwrap_err().to_string();
        assert!(sentence.contains(&format!("`{word}` gives other rows each time")), "{sentence}");
        assert_eq!(
            bench.rows(&format!("select count(*) as n from ({sql})")),
            bench.rows(&format!("select count(*) as n from ({sql})"))
        );
    }
    let error = open_training_data(
        &TrainingData::Table(TableRef::parse("x").unwrap()),
        None,
        &options,
        &SourceOptions::default(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "there is no table `x`; there are none yet: `tunesmith data load NAME FILE` makes one"
    );
}

#[test]
fn a_query_can_become_a_table() {
    let mut bench = Bench::new();
    let sql = "select prompt, ok from tickets where n > 1";
    let rows = bench.tables.query(sql, &QueryOptions::default()).unwrap();
    let parents = rows.parents().to_vec();
    let origin = LoadOrigin::Query { sql: sql.to_owned(), parents: parents.clone() };
    let mut records = Records::of(vec![Box::new(rows)]);
    let name = TableName::parse("late").unwrap();
    let go_on = |_| ControlFlow::Continue(());
    let made = bench.tables.load(&name, &mut records, origin, false, go_on).unwrap().unwrap();
    assert_eq!(made.origin, Origin::Query { sql: sql.to_owned(), parents });
    assert_eq!(
        bench.rows("select * from late"),
        [json!({"prompt": "p2", "ok": false}), json!({"prompt": "p3", "ok": null})]
    );
}

#[test]
fn many_rows_come_in_order_and_a_reader_may_leave() {
    let bench = Bench::new();
    let sql =
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 20000) select i from r";
    let rows = bench.rows(sql);
    assert!(rows.len() == 20_000 && rows.iter().zip(1..).all(|(row, i)| row["i"] == i));
    let endless = "with recursive r(i) as (select 1 union all select i + 1 from r) select i from r";
    let mut rows = bench.tables.query(endless, &QueryOptions::default()).unwrap();
    assert!(rows.next_record().unwrap().is_some());
    drop(rows);
}
