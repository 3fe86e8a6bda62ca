//! Tables and SQL over the built program: loaded, shown, queried, split, exported, trained on, removed.

use serde_json::{Value, json};

use crate::support::{Bench, read_json, rows, small_job};

fn loaded() -> Bench {
    let bench = Bench::new();
    let csv = "ticket_id,prompt,completion\n007,Where is it?,\"On its way, soon.\"\n008,\"Two\nlines\",Yes.\n007,Again?,No.\n";
    bench.write("tickets.csv", csv);
    bench.run(&["data", "load", "tickets", "tickets.csv"]).ok();
    bench
}

#[test]
fn a_table_is_loaded_listed_shown_and_removed() {
    let bench = loaded();
    let list = bench.run(&["data", "ls", "--json"]).json();
    assert_eq!(list[0]["name"], "tickets", "{list}");
    assert_eq!(list[0]["rows"], 3, "{list}");
    let shown = bench.run(&["data", "show", "tickets"]).stdout;
    for said in ["tickets.csv", "ticket_id", "007", "On its way, soon."] {
        assert!(shown.contains(said), "{said} is not in\n{shown}");
    }
    // A snapshot is never written over without being told to, and then a new one is made.
    bench.run(&["data", "load", "tickets", "tickets.csv"]).failed(65, "tickets");
    bench.run(&["data", "load", "tickets", "tickets.csv", "--replace"]).ok();
    assert_eq!(bench.run(&["data", "ls", "--json"]).json().as_array().unwrap().len(), 2);
    bench.run(&["data", "rm", "tickets"]).failed(2, "-y");
    bench.run(&["data", "rm", "tickets", "-y"]).ok();
    assert_eq!(bench.run(&["data", "ls", "--json"]).json(), json!([]));
}

#[test]
fn a_load_that_fails_leaves_nothing() {
    let bench = loaded();
    bench.write("bad.csv", "a,b\n1,2\n3\n");
    bench.run(&["data", "load", "bad", "bad.csv"]).failed(65, "`bad.csv`:3");
    bench.run(&["data", "show", "bad"]).failed(65, "bad");
    bench.run(&["data", "load", "select", "tickets.csv"]).failed(2, "select");
}

#[test]
fn queries_read_and_never_write() {
    let bench = loaded();
    let sql = |text: &str| bench.run(&["data", "sql", text, "--json"]);
    let counted = sql("select ticket_id, count(*) as n from tickets group by 1 order by 1").json();
    assert_eq!(counted["rows"], json!([{ "ticket_id": "007", "n": 2 }, { "ticket_id": "008", "n": 1 }]));
    for (text, said) in [
        ("drop table tickets", "SELECT"),
        ("select * from ticket", "tickets"),
        ("select answer from tickets", "answer"),
        ("attach 'x.db' as x", "SELECT"),
        ("select * from sqlite_master", "sqlite_master"),
    ] {
        sql(text).failed(65, said);
    }
    let csv = bench.run(&["data", "sql", "select completion from tickets limit 1", "--csv"]).stdout;
    assert_eq!(csv.trim_end().replace('\r', ""), "completion\n\"On its way, soon.\"");
}

#[test]
fn a_split_keeps_groups_together_and_is_the_same_again() {
    let bench = Bench::new();
    let text: String = (0..60)
        .map(|i| {
            json!({ "ticket_id": i / 3, "prompt": format!("p {i}"), "completion": format!("c {i}") })
                .to_string()
                + "\n"
        })
        .collect();
    bench.write("tickets.jsonl", &text);
    bench.run(&["data", "load", "tickets", "tickets.jsonl"]).ok();
    let split = ["data", "split", "tickets", "0.8", "0.2", "--seed", "7", "--by", "ticket_id"];
    bench.run(&split).ok();
    let both = "select count(*) as n from tickets_train where ticket_id in (select ticket_id from tickets_validation)";
    assert_eq!(bench.run(&["data", "sql", both, "--json"]).json()["rows"][0]["n"], 0);
    let count = |table: &str| {
        let sql = format!("select count(*) as n from {table}");
        bench.run(&["data", "sql", &sql, "--json"]).json()["rows"][0]["n"].as_u64().unwrap()
    };
    assert_eq!(count("tickets_train") + count("tickets_validation"), 60);
    assert!(count("tickets_validation") > 0);
}

#[test]
fn what_is_exported_is_what_was_loaded() {
    let bench = loaded();
    bench.run(&["data", "export", "tickets", "out.jsonl"]).ok();
    let text = std::fs::read_to_string(bench.path("out.jsonl")).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        first,
        json!({ "ticket_id": "007", "prompt": "Where is it?", "completion": "On its way, soon." })
    );
    bench.run(&["data", "export", "tickets", "out.jsonl"]).failed(65, "--force");
    bench.run(&["data", "export", "tickets", "out.jsonl", "--force"]).ok();
}

#[test]
fn a_job_trains_on_a_table_and_on_a_query() {
    let bench = Bench::new();
    bench.write("rows.jsonl", rows(20));
    bench.write("job.toml", small_job(""));
    bench.run(&["data", "load", "tickets", "rows.jsonl"]).ok();
    let run = |source: &str| {
        let set = format!("data.train={source}");
        let ran = bench.run(&["train", "job.toml", "--json", "--quiet", "--set", &set]);
        let result = ran.json();
        assert_eq!(result["status"], "success", "{ran:?}");
        let job = std::path::PathBuf::from(result["job_dir"].as_str().unwrap());
        (result["validation_loss"].clone(), read_json(&job.join("data/manifest.json")))
    };
    let (from_file, _) = run("rows.jsonl");
    let (from_table, manifest) = run("tickets");
    let (from_query, _) = run("select prompt as prompt, completion from tickets");
    assert_eq!((&from_table, &from_query), (&from_file, &from_file), "the same rows give the same loss");
    assert_eq!(manifest["sources"][0]["files"][0]["name"], "tickets@1");
    bench.run(&["train", "job.toml", "--set", "data.train=nothing"]).failed(65, "nothing");
}

/// Rows of 2 KB each: more than SQLite keeps in memory before it writes to the disk.
fn large_rows(count: usize) -> String {
    let text = "x".repeat(2000);
    (0..count).map(|i| json!({ "prompt": i.to_string(), "completion": text }).to_string() + "\n").collect()
}

#[test]
#[cfg(unix)]
fn a_load_that_is_killed_leaves_nothing() {
    use std::io::Write as _;
    let bench = loaded();
    let mut command = bench.command(&["data", "load", "large", "-", "--format", "jsonl"]);
    command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program has taken all of it but what a pipe holds, and waits for more.
    stdin.write_all(large_rows(40_000).as_bytes()).unwrap();
    let log = std::fs::metadata(bench.home().join("tables.sqlite-wal")).unwrap().len();
    assert!(log > 1 << 20, "it was writing when it was killed: {log}");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    let list = bench.run(&["data", "ls", "--json"]).json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!("tickets")));
    bench.run(&["data", "load", "large", "tickets.csv"]).ok();
}

#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_leaves_nothing() {
    let bench = loaded();
    bench.write("large.jsonl", large_rows(40_000));
    let ran = crate::jobs::with_file_limit(&bench, 20_000, "data load large large.jsonl");
    ran.failed(74, "tables.sqlite`");
    let list = bench.run(&["data", "ls", "--json"]).json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!("tickets")));
    bench.run(&["data", "sql", "select * from large"]).failed(65, "there is no table `large`");
}

#[test]
fn text_and_json_say_the_same_and_limits_are_told() {
    let bench = loaded();
    let text = bench.run(&["data", "sql", "select ticket_id, prompt from tickets", "--limit", "2"]);
    assert_eq!(
        text.stdout,
        "ticket_id  prompt\n─────────  ────────────\n007        Where is it?\n008        Two\\nlines\n2 rows\n"
    );
    assert!(text.stderr.contains("only the first 2 rows are shown; --limit 0 gives all"), "{text:?}");
    let json = bench.run(&["data", "sql", "select ticket_id from tickets", "--limit", "2", "--json"]).json();
    assert_eq!((json["rows"].as_array().unwrap().len(), &json["more"]), (2, &json!(true)));
    let csv = bench.run(&["data", "sql", "select ticket_id from tickets", "--limit", "0", "--csv"]);
    assert_eq!((csv.stdout.as_str(), csv.stderr.as_str()), ("ticket_id\n007\n008\n007\n", ""));
    let error = bench.run(&["data", "sql", "select promt from tickets", "--json"]);
    error.failed(65, "perhaps you mean `prompt`");
    assert_eq!(error.json()["error"]["code"], "invalid_query");
    bench
        .run(&[
            "data",
            "sql",
            "with recursive r(i) as (select 1 union all select i + 1 from r) select max(i) from r",
            "--timeout",
            "1",
        ])
        .failed(65, "it ran longer than 1 s;");
    for (args, said) in [
        (&["data", "split", "tickets", "1", "1", "1"][..], "--names a,b,c"),
        (&["data", "split", "tickets", "1"], "2"),
        (&["data", "sql", "select 1", "--json", "--csv"], "cannot be used with"),
        (&["data", "show", "tickets@0"], "snapshot number"),
    ] {
        bench.run(args).failed(2, said);
    }
    for verb in ["load", "ls", "show", "sql", "split", "export", "rm"] {
        let help = bench.run(&["data", verb, "--help"]);
        assert!(help.code == 0 && (verb == "ls" || help.stdout.contains("Examples:")), "{help:?}");
    }
}
