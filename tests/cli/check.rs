//! `data check`: the report in each of its forms, and what it ends with.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Bench, Ran, base, root, rows};

fn check(bench: &Bench, args: &[&str]) -> Ran {
    bench.run(&[&["data", "check", "rows.jsonl", "--base", &base()], args].concat())
}

fn tickets() -> Bench {
    let bench = Bench::new();
    bench.write("rows.jsonl", fs::read(root().join("tests/fixtures/tickets.jsonl")).unwrap());
    bench
}

#[test]
fn the_tickets_are_as_they_are() {
    let ran = check(&tickets(), &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let text = ran.stdout;
    let top = "\
`rows.jsonl`: prompt and completion: columns `prompt` and `completion`

  rows                                 304
  used                                 304
  tokens                            18,926
  trained tokens                    10,688
  end in a trained stop token      100.0 %
  packs                       10 of 2,048 tokens
  packs filled                      92.4 %

  tokens           p5   median      p95      p99  longest         all
  row              56       62       70       74       75      18,926
  prompt           23       27       31       33       34       8,238
  trained          32       34       42       46       46      10,688

  tokens of a row  rows
          52 - 53  █ 1
";
    assert!(text.starts_with(top), "{text}");
    assert!(text.ends_with("errors: 0, warnings: 1, notes: 0\n"), "{text}");
    assert!(
        text.contains("warning: at least 1 row held out (1.6 %) nearly equal to a training row"),
        "{text}"
    );
    assert!(text.contains("`rows.jsonl`:188 is like `rows.jsonl`:241 (0.80) [near_leaked_rows]"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours without a terminal");
}

#[test]
fn json_is_the_whole_report() {
    let bench = tickets();
    let ran = check(&bench, &["--json", "--show-mask", "2"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let report = ran.json();
    assert_eq!(
        (&report["status"], &report["errors"], &report["warnings"]),
        (&json!("ok"), &json!(0), &json!(1))
    );
    let train = &report["check"]["train"];
    assert_eq!((&train["data"]["rows"], &train["stopped"]), (&json!(304), &json!(304)));
    assert_eq!(train["template"], "chat");
    let bins = train["row_tokens"]["bins"].as_array().unwrap();
    assert_eq!(bins.iter().map(|b| b["rows"].as_u64().unwrap()).sum::<u64>(), 304);
    assert_eq!(report["check"]["similar"]["validation_rows"], 61);
    assert_eq!(report["previews"].as_array().unwrap().len(), 2);
    // What a job counts is what the check counts.
    let job = format!("base = '{}'\n[data]\ntrain = \"rows.jsonl\"\n", base());
    bench.write("job.toml", job);
    let quote = bench.run(&["quote", "job.toml", "--no-measure", "--json"]).json();
    let sum =
        |key: &str, held: &str| quote["plan"][key].as_u64().unwrap() + quote["plan"][held].as_u64().unwrap();
    assert_eq!(train["data"]["tokens"], sum("tokens", "validation_tokens"));
    assert_eq!(train["data"]["kept"], sum("rows", "validation_rows"));
}

#[test]
fn bad_rows_end_with_65_and_are_all_named() {
    let bench = Bench::new();
    bench.write(
        "rows.jsonl",
        rows(20) + "{\"prompt\": \"a\", oops}\n\n{\"prompt\": \"b\", \"completion\": 7}\n",
    );
    let ran = check(&bench, &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (65, ""), "{ran:?}");
    for said in [
        "error: invalid JSON at column 17 near `{\"prompt\": \"a\", oops}` (key must be a string); write one JSON object per record [bad_row]\n  `rows.jsonl`:21\n",
        "error: `completion` is a number, not a string; correct the value [bad_row]\n  `rows.jsonl`:23\n",
        "errors: 2, ",
    ] {
        assert!(ran.stdout.contains(said), "{said}\nnot in\n{}", ran.stdout);
    }
    let ran = check(&bench, &["--json"]);
    assert_eq!((ran.code, &ran.json()["status"]), (65, &json!("error")));
    bench.write("rows.jsonl", "");
    check(&bench, &[]).failed(65, "`rows.jsonl` has no rows");
}

#[test]
fn what_cannot_be_looked_at_is_an_error_of_the_command() {
    let bench = tickets();
    check(&bench, &["--max-seq-length", "2000"]).failed(65, "the base model's context ends at 1024 tokens");
    check(&bench, &["--over-long", "cut"]).failed(2, "truncate-prompt");
    check(&bench, &["--validation", "none.jsonl"]).failed(65, "none.jsonl");
    check(&bench, &["--html", "nowhere/report.html"]).failed(74, "nowhere/report.html");
    bench.run(&["data", "check", "none.jsonl", "--base", &base()]).failed(65, "none.jsonl");
    bench.run(&["data", "check", "rows.jsonl", "--base", "none"]).failed(65, "`none` does not exist");
}

#[test]
fn columns_limits_and_policies_do_as_told() {
    let bench = Bench::new();
    let renamed = rows(20).replace("\"prompt\"", "\"ask\"").replace("\"completion\"", "\"reply\"");
    bench.write("rows.jsonl", renamed);
    assert_eq!(check(&bench, &[]).code, 65);
    let ran = check(&bench, &["--prompt-col", "ask", "--completion-col", "reply"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.starts_with("`rows.jsonl`: prompt and completion: columns `ask` and `reply`\n"));
    bench.write(
        "rows.jsonl",
        rows(20) + &format!("{{\"prompt\": \"{}\", \"completion\": \"a\"}}\n", "word ".repeat(90)),
    );
    let with = |policy: &str| check(&bench, &["--max-seq-length", "64", "--over-long", policy]);
    let dropped = with("drop");
    assert!(
        dropped.code == 0 && dropped.stdout.contains("1 row longer than 64 tokens, left out"),
        "{dropped:?}"
    );
    assert!(dropped.stdout.contains("- - limit\n"), "{}", dropped.stdout);
    let cut = with("truncate-prompt");
    assert!(cut.code == 0 && cut.stdout.contains("1 row cut at the beginning of the prompt"), "{cut:?}");
    assert_eq!(with("fail").code, 65);
}

#[test]
fn rows_held_out_elsewhere_are_compared_with_the_training_rows() {
    let bench = Bench::new();
    bench.write("rows.jsonl", rows(20));
    bench.write("held.jsonl", rows(2) + "{\"prompt\": \"Who are you?\", \"completion\": \"A helper.\"}\n");
    let ran = check(&bench, &["--validation", "held.jsonl"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.contains("held out: `held.jsonl`: prompt and completion"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("warning: 2 rows held out (66.7 %) equal to a training row"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("`held.jsonl`:1 is like `rows.jsonl`:1 (1.00) [leaked_rows]"),
        "{}",
        ran.stdout
    );
}

#[test]
fn the_mask_shows_the_completion_and_its_stop_token() {
    let bench = Bench::new();
    let completion = "Yes,  it is:\n\tnaïve 👩‍🚀 «»";
    let row = json!({ "prompt": format!("{} end?\n", "long story ".repeat(400)), "completion": completion });
    bench.write("rows.jsonl", format!("{row}\n"));
    let ran = check(&bench, &["--show-mask", "3", "--template", "none", "--max-seq-length", "1024"]);
    let (_, shown) = ran.stdout.split_once(" tokens trained, the last one appended\n").unwrap();
    let (prompt, trained) = shown.split_once('«').unwrap();
    assert!(prompt.contains("[... ") && prompt.contains(" tokens not shown ...]"), "{prompt}");
    let (trained, _) = trained.rsplit_once('»').unwrap();
    let text = trained.replace("↵\n", "\n").replace('·', " ").replace('→', "\t");
    assert_eq!(text, format!("{completion}<|eot_id|>"));
}

#[test]
fn the_page_is_whole_and_escapes_what_the_rows_say() {
    let bench = Bench::new();
    let attack = "<script>alert(1)</script>";
    let row = json!({ "prompt": attack, "completion": attack, attack: 1 });
    bench.write("rows.jsonl", rows(20) + &format!("{row}\n{{\"prompt\": \"{attack}\"}}\n"));
    bench.write("report.html", "an older report");
    let ran = check(&bench, &["--html", "report.html", "--show-mask", "30"]);
    assert_eq!(ran.code, 65);
    assert!(ran.stdout.ends_with("report: report.html\n"));
    let page = fs::read_to_string(bench.path("report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(!page.contains("<script") && page.matches("&lt;script&gt;alert(1)").count() >= 3);
    let names: Vec<_> = fs::read_dir(bench.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().contains("tmp")), "{names:?}");
}

#[test]
fn a_row_cannot_command_the_terminal() {
    let bench = Bench::new();
    let row = json!({ "prompt": "\u{1b}[2J\u{202e}x", "completion": "\u{1b}]0;y\u{7}", "\u{1b}[31m": 1 });
    bench.write("rows.jsonl", format!("{row}\n{{\"\u{202e}\": 1}}\n"));
    let ran = check(&bench, &["--show-mask", "1"]);
    assert!(!ran.stdout.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{ran:?}");
    assert!(ran.stdout.contains("␛[2J"), "{ran:?}");
    let value: Value = check(&bench, &["--json"]).json();
    assert_eq!(value["errors"], 1);
}

#[test]
fn what_a_folder_leaves_out_is_told() {
    let bench = tickets();
    bench.write("folder/rows.jsonl", rows(20));
    bench.write("folder/readme.md", "not rows");
    let ran = bench.run(&["data", "check", "folder", "--base", &base()]);
    assert!(ran.code == 0 && ran.stdout.contains("left out 1 other entry: readme.md [source]"), "{ran:?}");
    bench.write("job.toml", crate::support::small_job("").replace("rows.jsonl", "folder"));
    let ran = bench.run(&["train", "job.toml"]);
    assert!(ran.code == 0 && ran.stderr.contains("left out 1 other entry: readme.md"), "{ran:?}");
}

/// Rows of words of which no two rows share three in a sequence.
fn distinct(from: usize, count: usize) -> Vec<Value> {
    (from..from + count)
        .map(|i| {
            let text = |n: usize| {
                (0..12).map(|w| format!("w{}", (i * 24 + n + w) % 9973)).collect::<Vec<_>>().join(" ")
            };
            json!({ "prompt": text(0), "completion": text(12) })
        })
        .collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().fold(String::new(), |text, row| text + &format!("{row}\n"))
}

/// The event of a job that tells of rows that are alike.
fn alike(bench: &Bench) -> Value {
    let text = fs::read_to_string(bench.only_job().join("events.jsonl")).unwrap();
    let mut found: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|e: &Value| e["type"] == "data" && !e["data"]["similar"].is_null())
        .collect();
    assert_eq!(found.len(), 1, "{text}");
    found.remove(0)["data"].take()
}

#[test]
fn a_job_names_validation_rows_that_are_training_rows() {
    let bench = Bench::new();
    let train = distinct(0, 12);
    let mut held = distinct(100, 4);
    held[1] = train[7].clone();
    let words = train[3]["completion"].as_str().unwrap();
    held[2] = json!({ "prompt": train[3]["prompt"], "completion": format!("{words} more") });
    bench.write("job.toml", crate::support::small_job(""));
    bench.write("rows.jsonl", lines(&train));
    bench.write("held.jsonl", lines(&held));
    let ran = bench.run(&["train", "job.toml", "--set", "data.validation=held.jsonl"]);
    ran.ok();
    for said in [
        "warning: 1 row held out (25.0 %) equal to a training row, so",
        "held.jsonl`:2 is like `",
        "rows.jsonl`:8 (1.00)\n",
        "warning: at least 1 row held out (25.0 %) nearly equal to a training row",
        "so the validation loss looks better than it is; remove them from one side; `",
        "held.jsonl`:3 is like `",
        "rows.jsonl`:4 (0.9",
    ] {
        assert!(ran.stderr.contains(said), "{said}\nnot in\n{}", ran.stderr);
    }
    // The job says in its log what the check says, of files by their whole paths.
    let check = check(&bench, &["--validation", "held.jsonl", "--max-seq-length", "128", "--json"]).json();
    let event = alike(&bench);
    assert_eq!(event["similar"], check["check"]["similar"]);
    let codes = |report: &Value| {
        report["findings"].as_array().unwrap().iter().map(|f| f["code"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&event), codes(&check["check"]));
    assert_eq!(codes(&event), ["leaked_rows", "near_leaked_rows"]);
    assert_eq!(event["similar"]["validation_rows"], 4);
    let names = fs::read_dir(bench.only_job().join("data")).unwrap().map(|e| e.unwrap().file_name());
    let mut names = names.map(|name| name.into_string().unwrap());
    let known =
        |name: &str| ["train.", "validation.", "manifest."].iter().any(|known| name.starts_with(known));
    assert!(names.all(|name| known(&name)), "a temporary file is left");
}

#[test]
fn a_job_finds_nothing_in_rows_that_differ_and_goes_by_its_own_split() {
    let bench = Bench::new();
    bench.write("job.toml", crate::support::small_job(""));
    let mut train = distinct(0, 12);
    bench.write("rows.jsonl", lines(&train));
    bench.write("held.jsonl", lines(&distinct(100, 4)));
    let ran = bench.run(&["train", "job.toml", "--set", "data.validation=held.jsonl"]);
    ran.ok();
    assert!(!ran.stderr.contains("equal to"), "{}", ran.stderr);
    assert_eq!(alike(&bench)["findings"], json!([]));

    // Pairs of rows that are alike: some seed puts them on two sides, and a column that they share never does.
    for i in 0..12 {
        train[i]["ticket"] = json!(i);
        let mut like = train[i].clone();
        like["completion"] = json!(format!("{} more", like["completion"].as_str().unwrap()));
        train.push(like);
    }
    bench.write("rows.jsonl", lines(&train));
    let quote = |sets: &[&str]| {
        let ran = bench.run(&[&["quote", "job.toml", "--no-measure"], sets].concat());
        ran.ok();
        ran.stderr
    };
    let apart = quote(&["--set", "data.validation_split=0.4"]);
    assert!(apart.contains("held out") && apart.contains("nearly equal to a training row"), "{apart}");
    let kept = quote(&["--set", "data.validation_split=0.4", "--set", "data.split_by=ticket"]);
    assert!(!kept.contains("held out") && kept.contains("note: at least "), "{kept}");
    let none = quote(&["--set", "data.validation_split=0"]);
    assert!(!none.contains("held out") && none.contains("note: at least 12 rows nearly equal"), "{none}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_template_that_nobody_knows_is_run_in_limits() {
    let bench = Bench::new();
    let source = root().join("tests/fixtures/support-base-4m");
    for file in fs::read_dir(&source).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
        bench.write(
            &format!("model/{}", file.file_name().unwrap().to_str().unwrap()),
            fs::read(&file).unwrap(),
        );
    }
    let config = fs::read(source.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let known = config["chat_template"]
        .as_str()
        .map_or_else(|| fs::read_to_string(source.join("chat_template.jinja")).unwrap(), str::to_owned);
    let _ = fs::remove_file(bench.path("model/chat_template.jinja"));
    let mut with = |template: String| {
        config["chat_template"] = json!(template);
        bench.write("model/tokenizer_config.json", config.to_string());
        let ran = bench.run(&["data", "check", "rows.jsonl", "--base", "model", "--json"]);
        (ran.code, ran.json()["check"]["train"].clone())
    };
    bench.write("rows.jsonl", rows(40));
    let (_, native) = with(known.clone());
    let (code, helped) = with(known + "{# mine #}");
    assert_eq!((code, helped), (0, native));
    bench.write("rows.jsonl", rows(1));
    let (code, report) = with("{{ ([[0] * 99999] * 99999) == ([[0] * 99999] * 99999) }}".to_owned());
    let said = report["data"]["bad_rows"][0]["message"].as_str().unwrap();
    assert!(code == 65 && said.contains("it took more than 5 seconds of computing"), "{said}");
}
