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
