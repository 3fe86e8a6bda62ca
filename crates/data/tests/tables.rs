//! Tables: what goes in comes out again, whole or not at all.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tunesmith_data::{
    Error, Kind, LoadOrigin, Origin, Place, Raw, Record, RecordReader, Records, RowError, Snapshot,
    SourceOptions, SplitOptions, TableError, TableName, TableRef, Tables,
};

/// A store in a folder of its own.
struct Bench {
    dir: tempfile::TempDir,
    tables: Tables,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tables = Tables::open(&dir.path().join("tables.sqlite")).unwrap();
        Self { dir, tables }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn try_load(&mut self, name: &str, text: &str, replace: bool) -> Result<Snapshot, Error> {
        let file = self.path("rows.jsonl");
        std::fs::write(&file, text).unwrap();
        let mut records = Records::open(&[file.display().to_string()], &SourceOptions::default())?;
        self.load_records(name, &mut records, replace)
    }

    fn load_records(&mut self, name: &str, records: &mut Records, replace: bool) -> Result<Snapshot, Error> {
        let go_on = |_| ControlFlow::Continue(());
        let loaded = self.tables.load(&named(name), records, LoadOrigin::Files, replace, go_on)?;
        Ok(loaded.unwrap())
    }

    fn load(&mut self, name: &str, rows: &[Value]) -> Snapshot {
        self.try_load(name, &lines(rows), false).unwrap()
    }

    /// The sentence of a load that fails, with the folder cut off.
    fn refusal(&mut self, text: &str) -> String {
        let before = self.tables.list().unwrap();
        let error = self.try_load("refused", text, false).unwrap_err().to_string();
        assert_eq!(self.tables.list().unwrap(), before);
        error.replace(&format!("{}/", self.dir.path().display()), "")
    }

    fn read(&self, name: &str) -> Vec<Value> {
        all(self.tables.read(&TableRef::parse(name).unwrap()).unwrap()).unwrap()
    }
}

fn named(name: &str) -> TableName {
    TableName::parse(name).unwrap()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().flat_map(|row| [row.to_string(), "\n".to_owned()]).collect()
}

fn all(mut rows: impl RecordReader) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    while let Some(record) = rows.next_record()? {
        assert_eq!(record.place.number, found.len() as u64 + 1);
        found.push(Value::Object(record.raw.unwrap().into_object().unwrap()));
    }
    Ok(found)
}

/// Objects as they are, as a reader of Parquet gives them.
struct Objects(std::vec::IntoIter<Result<Map<String, Value>, RowError>>, u64);

fn objects(rows: Vec<Result<Value, RowError>>) -> Records {
    let rows: Vec<_> = rows.into_iter().map(|row| row.map(|r| r.as_object().unwrap().clone())).collect();
    Records::of(vec![Box::new(Objects(rows.into_iter(), 0))])
}

impl RecordReader for Objects {
    fn next_record(&mut self) -> Result<Option<Record>, Error> {
        self.1 += 1;
        let place = Place { file: 0, number: self.1 };
        Ok(self.0.next().map(|row| Record { place, raw: row.map(Raw::Object) }))
    }

    fn facts(&self) -> tunesmith_data::FileFacts {
        tunesmith_data::FileFacts {
            name: "objects".to_owned(),
            format: tunesmith_data::Format::Parquet,
            bytes: 0,
            sha256: String::new(),
            records: self.1 - 1,
        }
    }
}

fn kinds(snapshot: &Snapshot) -> Vec<(&str, Kind)> {
    snapshot.columns.iter().map(|c| (c.name.as_str(), c.kind)).collect()
}

#[test]
fn every_value_comes_back_as_it_was() {
    let rows = [
        json!({"text": "007", "int": 1, "real": 0.1, "bool": true, "list": [1, [true, null], {"b": 2, "a": 1e300}]}),
        json!({"text": "a\u{0}b \u{1F600} \"'\n", "int": i64::MIN, "real": -0.0, "bool": false, "list": {}}),
        json!({"text": "", "int": i64::MAX, "real": 5e-324, "bool": null, "list": null}),
        json!({"int": null, "real": 3, "mixed": "12"}),
        json!({"real": 9_007_199_254_740_993_i64, "mixed": 12}),
        json!({"real": 1.797_693_134_862_315_7e308, "mixed": true, "big": u64::MAX, "never": null}),
        json!({"real": 2.0, "mixed": [0.1, 123_456_789.123_456_78], "big": 1, "null then": null}),
        json!({"null then": "a", "list": "text"}),
    ];
    let mut bench = Bench::new();
    let snapshot = bench.load("t", &rows);
    let texts = |rows: &[Value]| rows.iter().map(canonical).collect::<Vec<_>>();
    assert_eq!(texts(&bench.read("t")), texts(&rows));
    assert_eq!(
        kinds(&snapshot),
        [
            ("text", Kind::Text),
            ("int", Kind::Integer),
            ("real", Kind::Real),
            ("bool", Kind::Boolean),
            ("list", Kind::Json),
            ("mixed", Kind::Json),
            ("big", Kind::Json),
            ("never", Kind::Text),
            ("null then", Kind::Text),
        ]
    );
    let column = |name: &str| snapshot.columns.iter().find(|c| c.name == name).unwrap();
    assert_eq!((column("int").nulls, column("int").missing), (1, 4));
    assert_eq!(column("real").mixture().unwrap(), "2 integer, 5 real");
    assert_eq!(column("mixed").mixture().unwrap(), "1 text, 1 integer, 1 boolean, 1 json");
    assert_eq!(column("text").mixture(), None);
    assert_eq!((snapshot.rows, snapshot.snapshot, snapshot.newest), (8, 1, true));
}

/// JSON with the keys of the outer object in order.
fn canonical(row: &Value) -> String {
    let members: std::collections::BTreeMap<_, _> = row.as_object().unwrap().iter().collect();
    serde_json::to_string(&members).unwrap()
}

#[test]
fn what_later_batches_bring_does_not_change_earlier_rows() {
    // Columns appear and kinds widen far behind the first batch, each several times.
    let rows: Vec<Value> = (0..30_000_i64)
        .map(|i| match i / 5000 {
            0 => json!({"id": i, "a": "007"}),
            1 => json!({"id": i, "a": null}),
            2 => json!({"a": "x", "id": i as f64 + 0.5, "b": true}),
            3 => json!({"id": i, "b": false, "c": [i]}),
            4 => json!({"id": format!("{i}"), "a": 7}),
            _ => json!({"d": i}),
        })
        .collect();
    let mut bench = Bench::new();
    let snapshot = bench.load("t", &rows);
    assert_eq!(
        kinds(&snapshot),
        [
            ("id", Kind::Json),
            ("a", Kind::Json),
            ("b", Kind::Boolean),
            ("c", Kind::Json),
            ("d", Kind::Integer)
        ]
    );
    assert_eq!(bench.read("t"), rows);
    let missing: Vec<_> = snapshot.columns.iter().map(|c| c.missing).collect();
    assert_eq!(missing, [5000, 10_000, 20_000, 25_000, 25_000]);
    // The same rows in one piece have the same content hash.
    let ordered = bench.load("again", &rows);
    assert_eq!((ordered.sha256, ordered.bytes), (snapshot.sha256, snapshot.bytes));
}

#[test]
fn a_bad_record_ends_the_load_and_leaves_nothing() {
    let mut bench = Bench::new();
    let good = "{\"a\": 1}\n";
    let many = good.repeat(20_000);
    assert_eq!(
        bench.refusal(&format!("{many}{{\"a\": }}\n{good}")),
        "`rows.jsonl`:20001: invalid JSON at column 7 near `{\"a\": }` (expected value); write one JSON object per record"
    );
    assert_eq!(
        bench.refusal(&format!("{good}\n{{\"b\": [18446744073709551616]}}")),
        "`rows.jsonl`:3: invalid JSON at column 8 near `{\"b\": [18446744073709551616]}` (a number beyond 64 bits would lose digits, write it as a string); write one JSON object per record"
    );
    assert_eq!(
        bench.refusal("{\"Prompt\": 1}\n{\"prompt\": 1}\n"),
        "`rows.jsonl`:2: the columns `Prompt` and `prompt` differ only in case, which SQL does not tell apart; rename one"
    );
    assert_eq!(
        bench.refusal("{\"\": 1}\n"),
        "`rows.jsonl`:1: the column name `` is empty; rename the column"
    );
    assert!(bench.refusal("{\"a\\u0000\": 1}\n").contains("contains a NUL character"));
    assert!(bench.refusal("{\"_tunesmith_row\": 1}\n").contains("is reserved"));
    assert_eq!(
        bench.refusal(""),
        "`rows.jsonl` has no rows; give it at least one, with `prompt` and `completion` or with `messages`"
    );
    assert!(bench.refusal("{}\n").contains("has no columns"));
    let wide: Map<String, Value> = (0..1991).map(|i| (format!("c{i}"), json!(i))).collect();
    assert!(bench.refusal(&Value::Object(wide).to_string()).contains("more than 1990 columns"));

    let mut rows = vec![Ok(json!({"a": 1})); 9000];
    rows.push(Err(RowError::Utf16));
    let error = bench.load_records("t", &mut objects(rows), false).unwrap_err().to_string();
    assert_eq!(error, "`objects`, row 9001: the file is UTF-16; save it as UTF-8");
    assert!(bench.tables.list().unwrap().is_empty());
    // No table of a broken load is left in the database either.
    let raw = rusqlite::Connection::open(bench.tables.path()).unwrap();
    let left: i64 = raw
        .query_row("select count(*) from sqlite_schema where name like '%rows_%'", [], |r| r.get(0))
        .unwrap();
    assert_eq!(left, 0);
}

#[test]
fn the_widest_table_works() {
    let wide: Map<String, Value> = (0..1990).map(|i| (format!("c{i}"), json!(i))).collect();
    let mut bench = Bench::new();
    bench.load("wide", &[Value::Object(wide.clone())]);
    assert_eq!(bench.read("wide"), [Value::Object(wide)]);
}

#[test]
fn odd_column_names_are_kept() {
    let row =
        json!({"a\"b": 1, "select": 2, "é É": 3, "rowid": 4, "x'; drop table t; --": 5, "a.b": 6, " ": 7});
    let mut bench = Bench::new();
    bench.load("t", std::slice::from_ref(&row));
    assert_eq!(bench.read("t"), [row]);
}

#[test]
fn a_load_that_is_broken_off_leaves_nothing() {
    let mut bench = Bench::new();
    let mut records = objects(vec![Ok(json!({"a": 1})); 10]);
    let stopped =
        bench.tables.load(&named("t"), &mut records, LoadOrigin::Files, false, |_| ControlFlow::Break(()));
    assert!(stopped.unwrap().is_none() && bench.tables.list().unwrap().is_empty());
    bench.load("t", &[json!({"a": 1})]);
}

#[test]
fn snapshots_are_kept_and_named() {
    let mut bench = Bench::new();
    bench.load("Tickets", &[json!({"a": 1})]);
    assert_eq!(
        bench.try_load("tickets", "{\"a\": 2}\n", false).unwrap_err().to_string(),
        "there is a table `tickets` already; choose another name, or use --replace to make a new snapshot of it"
    );
    let second = bench.try_load("tickets", "{\"b\": 2}\n", true).unwrap();
    assert_eq!((second.name.as_str(), second.snapshot, second.newest), ("Tickets", 2, true));
    assert_eq!(bench.read("tickets"), [json!({"b": 2})]);
    assert_eq!(bench.read("TICKETS@1"), [json!({"a": 1})]);
    let sentence = |name: &str| bench.tables.read(&TableRef::parse(name).unwrap()).unwrap_err().to_string();
    assert_eq!(sentence("tickets@3"), "`tickets` has no snapshot 3; it has `Tickets@1`, `Tickets@2`");
    assert_eq!(
        sentence("tikets"),
        "there is no table `tikets`, perhaps you mean `Tickets`; the tables are `Tickets`"
    );

    let removed = bench.tables.remove(&TableRef::parse("tickets@2").unwrap()).unwrap();
    assert_eq!(removed.iter().map(Snapshot::label).collect::<Vec<_>>(), ["Tickets@2"]);
    assert_eq!(bench.read("tickets"), [json!({"a": 1})]);
    // A number that a job may have noted is never given to other rows.
    assert_eq!(bench.try_load("tickets", "{\"c\": 3}\n", true).unwrap().snapshot, 3);
    assert_eq!(bench.tables.remove(&TableRef::parse("tickets").unwrap()).unwrap().len(), 2);
    assert!(bench.tables.list().unwrap().is_empty());
    assert!(matches!(
        bench.tables.remove(&TableRef::parse("tickets").unwrap()).unwrap_err(),
        Error::Table(TableError::NoTable { .. })
    ));
}

#[test]
fn lineage_names_the_files_and_the_content() {
    let mut bench = Bench::new();
    let text = "{\"b\": 1, \"a\": [{\"y\": 1, \"x\": 2}]}\n";
    let first = bench.try_load("one", text, false).unwrap();
    let Origin::Files { files } = &first.origin else { panic!("{:?}", first.origin) };
    assert_eq!(files.len(), 1);
    assert_eq!((files[0].bytes, files[0].records), (text.len() as u64, 1));
    assert!(files[0].name.ends_with("rows.jsonl") && files[0].sha256.len() == 64);
    // Another spelling of the same row is the same content, from another file.
    let second = bench.try_load("two", "{\"a\":[{\"x\":2,\"y\":1}],\"b\":1}", false).unwrap();
    assert_eq!(first.sha256, second.sha256);
    let Origin::Files { files: other } = &second.origin else { panic!("{:?}", second.origin) };
    assert_ne!(files[0].sha256, other[0].sha256);
    let third = bench.try_load("three", "{\"a\":[{\"x\":2,\"y\":1}],\"b\":1.0}", false).unwrap();
    assert_ne!(first.sha256, third.sha256);
    assert!(first.created.starts_with("20") && first.created.ends_with('Z'), "{}", first.created);
}

#[test]
fn other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tables.sqlite");
    let refusal = || Tables::open(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "T");
    std::fs::write(&path, "{\"prompt\": 1}").unwrap();
    assert_eq!(
        refusal(),
        "`T` is not a store of tables: it is no SQLite database; move it away or choose another workspace"
    );
    std::fs::write(&path, [b"SQLite format 3\0".as_slice(), &[7; 4096]].concat()).unwrap();
    assert!(refusal().contains("or a damaged one"), "{}", refusal());
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("create table t (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(refusal().contains("it is the SQLite database of another program"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
    drop(Tables::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    assert_eq!(refusal(), "`T` has format 2, but this version reads up to 1; use a newer version");
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    assert!(Tables::open(&folder).unwrap_err().to_string().contains("it is a folder"));
    assert!(Tables::open_existing(&dir.path().join("none")).unwrap().is_none());
    assert!(!dir.path().join("none").exists());
}

#[test]
fn readers_see_one_moment_while_others_write() {
    let mut bench = Bench::new();
    let rows: Vec<Value> = (0..20_000).map(|i| json!({"i": i})).collect();
    bench.load("t", &rows);
    let mut reader = bench.tables.read(&TableRef::parse("t").unwrap()).unwrap();
    assert!(reader.next_record().unwrap().is_some());
    bench.try_load("t", "{\"i\": -1}\n", true).unwrap();
    bench.tables.remove(&TableRef::parse("t@1").unwrap()).unwrap();
    let mut left = 0;
    while let Some(record) = reader.next_record().unwrap() {
        left += 1;
        assert_eq!(record.raw.unwrap().into_object().unwrap()["i"], left);
    }
    assert_eq!(left, 19_999);
    assert_eq!(bench.read("t"), [json!({"i": -1})]);
}

fn split(parts: &[(&str, f64)], seed: u64, by: Option<&str>) -> SplitOptions {
    let parts = parts.iter().map(|(name, weight)| (named(name), *weight)).collect();
    SplitOptions { parts, seed, by: by.map(str::to_owned), replace: true }
}

#[test]
fn parts_share_no_row_whatever_the_order() {
    let mut rows: Vec<Value> =
        (0..300).map(|i| json!({"prompt": format!("p{}", i % 200), "n": 0.5})).collect();
    let mut bench = Bench::new();
    bench.load("t", &rows);
    let source = TableRef::parse("t").unwrap();
    let made = bench.tables.split(&source, &split(&[("a", 8.0), ("b", 2.0)], 7, None)).unwrap();
    let (a, b) = (bench.read("a"), bench.read("b"));
    assert_eq!((made[0].rows + made[1].rows, a.len() as u64), (300, made[0].rows));
    assert!(a.iter().all(|row| !b.contains(row)));
    let distinct: std::collections::BTreeSet<_> = b.iter().map(canonical).collect();
    assert_eq!(distinct.len(), 40);
    assert_eq!(kinds(&made[1]), [("prompt", Kind::Text), ("n", Kind::Real)]);
    let Origin::Split { parent, parts, seed, by } = &made[1].origin else { panic!("{:?}", made[1].origin) };
    assert_eq!((parent.table.as_str(), parent.snapshot, *seed, by), ("t", 1, 7, &None));
    assert_eq!(parts.as_slice(), [("a".to_owned(), 0.8), ("b".to_owned(), 0.2)]);

    rows.reverse();
    bench.try_load("t", &lines(&rows), true).unwrap();
    bench.tables.split(&source, &split(&[("a", 0.8), ("b", 0.2)], 7, None)).unwrap();
    let mut again = bench.read("b");
    again.reverse();
    assert_eq!(again, b, "the same rows, in the order of the source");
    bench.tables.split(&source, &split(&[("a", 0.8), ("b", 0.2)], 8, None)).unwrap();
    let mut other = bench.read("b");
    other.reverse();
    assert_ne!(other, again);
}

#[test]
fn groups_stay_together() {
    let rows: Vec<Value> = (0..400).map(|i| json!({"Ticket": i % 50, "text": i})).collect();
    let mut bench = Bench::new();
    bench.load("t", &rows);
    let source = TableRef::parse("t").unwrap();
    let parts = [("a", 0.6), ("b", 0.3), ("c", 0.1)];
    let made = bench.tables.split(&source, &split(&parts, 1, Some("ticket"))).unwrap();
    assert_eq!(made.iter().map(|s| s.rows).collect::<Vec<_>>(), [240, 120, 40]);
    let keys = |name| {
        bench
            .read(name)
            .iter()
            .map(|r| r["Ticket"].as_i64().unwrap())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert!(
        keys("a").is_disjoint(&keys("b"))
            && keys("a").is_disjoint(&keys("c"))
            && keys("b").is_disjoint(&keys("c"))
    );
}

#[test]
fn a_split_that_cannot_be_makes_nothing() {
    let mut bench = Bench::new();
    bench.load("t", &[json!({"a": 1, "k": "x"}), json!({"a": 1, "k": "x"}), json!({"a": 2})]);
    let source = TableRef::parse("t").unwrap();
    let mut refusal = |parts: &[(&str, f64)], by| {
        bench.tables.split(&source, &split(parts, 0, by)).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&[("a", 1.0), ("b", 1.0), ("c", 1.0)], None),
        "cannot split: `t@1` has too few different rows for 3 parts, so one would be empty; use fewer parts"
    );
    assert_eq!(
        refusal(&[("a", 1.0), ("b", 1.0)], Some("k")),
        "cannot split: row 3 of `t@1` has no `k`; give every row one, or load a query's result without such rows"
    );
    assert!(refusal(&[("a", 1.0), ("b", 1.0)], Some("kk")).starts_with("`t` has no column `kk`"));
    assert!(refusal(&[("a", 1.0)], None).contains("one part is no split"));
    assert!(refusal(&[("a", 1.0), ("A", 1.0)], None).contains("two parts are called `A`"));
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refusal(&[("a", 1.0), ("b", weight)], None).contains("use a number above 0"));
    }
    assert!(refusal(&[("a", 1e308), ("b", 1e308)], None).contains("use smaller ones"));
    assert_eq!(bench.tables.list().unwrap().len(), 1);
}

#[test]
fn exports_are_whole_and_say_what_csv_loses() {
    let mut bench = Bench::new();
    let rows = [
        json!({"prompt": "a, \"b\"\nc", "tags": ["x"], "n": 0.1, "ok": true}),
        json!({"prompt": "", "tags": null}),
    ];
    bench.load("t", &rows);
    let source = TableRef::parse("t").unwrap();
    let jsonl = bench.path("out.jsonl");
    let done = bench.tables.export(&source, &jsonl, false).unwrap();
    let text = std::fs::read_to_string(&jsonl).unwrap();
    assert_eq!((done.rows, done.bytes, done.nulls), (2, text.len() as u64, 0));
    let back: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(back, rows);
    let csv = bench.path("out.CSV");
    assert_eq!(bench.tables.export(&source, &csv, false).unwrap().nulls, 3);
    assert_eq!(
        std::fs::read_to_string(&csv).unwrap(),
        "prompt,tags,n,ok\n\"a, \"\"b\"\"\nc\",\"[\"\"x\"\"]\",0.1,true\n,,,\n"
    );
    let refusal =
        |file: &str| bench.tables.export(&source, &bench.path(file), false).unwrap_err().to_string();
    assert!(refusal("out.csv2").contains("ends in neither .jsonl nor .csv"));
    assert!(refusal("out.jsonl").contains("use --force"));
    assert!(refusal("no/out.jsonl").contains("cannot write"));
    bench.tables.export(&source, &jsonl, true).unwrap();
    let names: Vec<_> =
        std::fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().contains(".tmp")), "{names:?}");
}
