//! Help, version, completions, exit codes of a wrong command line, and `generate`'s arguments.

use std::io::Read as _;
use std::process::Stdio;

use crate::support::{Bench, base};

#[test]
fn help_has_every_command_examples_and_the_exit_codes() {
    let bench = Bench::new();
    let ran = bench.run(&["--help"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for text in ["train", "generate", "adapter", "config", "completions", "Examples:", "TUNESMITH_HOME"] {
        assert!(ran.stdout.contains(text), "{text}");
    }
    for code in [
        "    0  done",
        "    1  `selftest`",
        "    2  ",
        "   65  ",
        "   69  ",
        "   70  ",
        "   74  ",
        "   75  ",
        "  130  ",
    ] {
        assert!(ran.stdout.contains(code), "{code:?} is not in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains('\u{1b}'), "no colours where there is no terminal");
    for command in
        [&["train"][..], &["generate"], &["completions"], &["config", "show"], &["adapter", "inspect"]]
    {
        let ran = bench.run(&[command, &["--help"]].concat());
        assert!(ran.code == 0 && ran.stdout.contains("Usage: tunesmith"), "{ran:?}");
    }
}

#[test]
fn version_is_the_package_version() {
    let ran = Bench::new().run(&["--version"]);
    assert_eq!((ran.code, ran.stdout), (0, format!("tunesmith {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn wrong_command_lines_exit_with_2_and_say_so_on_stderr() {
    let bench = Bench::new();
    let base = base();
    for (args, text) in [
        (&[][..], "Usage:"),
        (&["tarin"], "unrecognized subcommand 'tarin'"),
        (&["train"], "JOB.toml"),
        (&["train", "job.toml", "--epoch", "3"], "--epochs"),
        (&["train", "job.toml", "--epochs", "x"], "invalid value 'x'"),
        (&["train", "job.toml", "--epochs", "x"], "expected `auto` or a number"),
        (&["generate", "--base", &base], "required"),
        (&["generate", "--base", &base, "--prompt", "a", "--messages", "b"], "cannot be used with"),
        (&["generate", "--base", &base, "--messages", "b", "--raw"], "cannot be used with"),
        (&["generate", "--base", &base, "--prompt", "a", "--temperature", "-1"], "at least 0"),
        (&["generate", "--base", &base, "--prompt", "a", "--temperature", "nan"], "at least 0"),
        (&["generate", "--base", &base, "--prompt", "a", "--top-p", "0"], "above 0"),
        (&["generate", "--base", &base, "--prompt", "a", "--max-new-tokens", "0"], "0"),
        (&["generate", "--base", &base, "--prompt", " "], "the prompt is empty"),
        (&["completions", "cobol"], "invalid value 'cobol'"),
    ] {
        let ran = bench.run(args);
        ran.failed(2, text);
        assert_eq!(ran.stdout, "", "{args:?}");
    }
}

#[test]
fn completions_name_the_commands_and_flags() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = bench.run(&["completions", shell]);
        assert!(ran.code == 0 && ran.stderr.is_empty(), "{shell}: {ran:?}");
        for word in ["train", "inspect", "max-new-tokens", "offline"] {
            assert!(ran.stdout.contains(word), "{shell} has no {word}");
        }
    }
}

#[test]
fn bad_input_for_generate_is_told_before_a_model_is_loaded() {
    let bench = Bench::new();
    let base = base();
    let messages = |name: &str, text: &str| {
        bench.write(name, text);
        bench.run(&["generate", "--base", &base, "--messages", name])
    };
    messages("a.json", "[").failed(65, "`a.json` is not valid JSON");
    messages("b.json", "{}").failed(65, "`b.json` holds no list of messages");
    messages("c.json", "{\"messages\": []}").failed(65, "the list of messages in `c.json` is empty");
    messages("d.json", "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"user\"}]")
        .failed(65, "message 2 in `d.json` has no text in `content`");
    bench.run(&["generate", "--base", &base, "--messages", "no.json"]).failed(65, "`no.json` does not exist");
    let stdin = bench.run_with_stdin(&["generate", "--base", &base, "--prompt", "-"], b"\xff\xff");
    stdin.failed(65, "standard input is not valid UTF-8");
    bench
        .run(&["generate", "--base", "./no/model", "--prompt", "a"])
        .failed(65, "`./no/model` does not exist");
    bench
        .run(&["generate", "--base", &base, "--revision", "main", "--prompt", "a"])
        .failed(65, "only a Hugging Face repo id has revisions");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let bench = Bench::new();
    let mut child =
        bench.command(&["config", "schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Closing the pipe at once: whatever the program writes has no reader.
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
#[cfg(target_os = "linux")]
fn an_output_that_cannot_be_written_is_an_io_error() {
    let bench = Bench::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = crate::support::finish_with_stdout(bench.command(&["config", "schema"]), full);
    ran.failed(74, "cannot write `standard output`: the disk is full");
}

#[test]
fn inspecting_what_is_no_adapter() {
    let bench = Bench::new();
    bench.run(&["adapter", "inspect", "nowhere"]).failed(65, "nowhere");
    std::fs::create_dir(bench.path("empty")).unwrap();
    bench.run(&["adapter", "inspect", "empty"]).failed(65, "empty");
    let ran = bench.run(&["adapter", "inspect", "empty", "--json"]);
    assert_eq!(ran.failed(65, "empty").json()["error"]["class"], "data");
}
