//! Templates made to exhaust time, memory or the stack: each ends in one sentence, inside its bounds.
//!
//! Every case runs in a process of its own, so that a crash or an endless loop is one failed case and the peak of its
//! memory can be read.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::exit)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tunesmith_data::{ChatTemplate, Message, Now};

/// The case a child process is to run, and the bytes of its conversation.
const CASE: &str = "TUNESMITH_BOMB";
const BYTES: &str = "TUNESMITH_BOMB_BYTES";
/// The most memory a case may touch, in KiB.
const MAX_PEAK_KIB: u64 = 512 << 10;
/// After this long a case counts as endless, and its process ends itself. Far from what the slowest takes on a busy machine.
const ENDLESS: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
enum Source {
    /// The template.
    Text(&'static str),
    /// A step that is taken over and over on `ns.t` (a text) and `ns.l` (a list), and what follows.
    Grow(&'static str, &'static str),
    /// Before, repeated, middle, repeated, after.
    Nest([&'static str; 5]),
}
use Source::{Grow, Nest, Text};

/// Templates that must not render.
const BOMBS: &[(&str, Source)] = &[
    ("tilde", Grow("{% set ns.t = ns.t ~ ns.t %}", "")),
    ("plus", Grow("{% set ns.t = ns.t + ns.t %}", "")),
    ("replace", Grow("{% set ns.t = ns.t | replace('x', 'xxxxxxxxxxxxxxxx') %}", "")),
    ("replace_method", Grow("{% set ns.t = ns.t.replace('x', 'xxxxxxxxxxxxxxxx') %}", "")),
    ("replace_empty", Grow("{% set ns.t = ns.t.replace('', ns.t) %}", "")),
    ("indent", Grow("{% set ns.t = (ns.t ~ '\n') | indent(99999999, true) %}", "")),
    ("indent_grow", Grow("{% set ns.t = (ns.t ~ '\n' ~ ns.t) | indent(9999, true) %}", "")),
    ("format", Grow("{% set ns.t = '%s%s' | format(ns.t, ns.t) %}", "")),
    ("format_width", Text("{{ '%2000000000d' | format(1) }}")),
    ("format_method", Grow("{% set ns.t = '{0}{0}'.format(ns.t) %}", "")),
    ("format_method_width", Text("{{ '{:>2000000000}'.format(1) }}")),
    ("join", Grow("{% set ns.t = [ns.t, ns.t, ns.t] | join(ns.t) %}", "")),
    ("join_method", Grow("{% set ns.t = ns.t.join([ns.t, ns.t, ns.t]) %}", "")),
    ("join_range", Grow("{% set ns.t = range(99999) | join(ns.t) %}", "")),
    ("times_text", Text("{{ 'x' * 2000000000 }}")),
    ("times_list", Text("{{ ([0] * 2000000000) | list | length }}")),
    ("times_list_show", Text("{{ [0] * 2000000000 }}")),
    ("times_list_nested", Grow("{% set ns.l = ns.l * 1000 %}{{ ns.l | tojson }}", "")),
    ("range", Text("{{ range(2000000000) | list | length }}")),
    (
        "range_loops",
        Text("{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"),
    ),
    ("macro_recursion", Text("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}")),
    (
        "macro_tree",
        Text("{% macro m(x) %}{% if x %}{{ m(x - 1) }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(90) }}"),
    ),
    ("loop_recursion", Text("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}")),
    ("include_itself", Text("{% include 'chat_template' %}")),
    ("extends_itself", Text("{% extends 'chat_template' %}")),
    ("import_itself", Text("{% import 'chat_template' as t %}{{ t.x }}")),
    ("include_file", Text("{% include '/etc/passwd' %}")),
    ("dunder", Text("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    ("output", Text("{% set t = 'x' * 100000 %}{% for i in range(99999) %}{{ t }}{% endfor %}")),
    (
        "capture",
        Text(
            "{% set t = 'x' * 100000 %}{% set u %}{% for i in range(99999) %}{{ t }}{% endfor %}{% endset %}",
        ),
    ),
    (
        "generation",
        Text(
            "{% set t = 'x' * 100000 %}{% generation %}{% for i in range(99999) %}{{ t }}{% endfor %}{% endgeneration %}",
        ),
    ),
    ("list_growth", Grow("{% set ns.l = ns.l + ns.l %}{% set x = ns.l | list %}", "")),
    (
        "list_laugh_json",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | tojson }}{% endif %}", ""),
    ),
    (
        "list_laugh_sorted",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | tojson(sort_keys=true) }}{% endif %}",
            "",
        ),
    ),
    ("list_laugh_text", Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l }}{% endif %}", "")),
    (
        "list_laugh_pprint",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | pprint }}{% endif %}", ""),
    ),
    (
        "list_laugh_equal",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l == [ns.l[0], [ns.l[1][0], ns.l[1][1]]] }}{% endif %}",
            "",
        ),
    ),
    (
        "list_laugh_sort",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ [ns.l, [ns.l[0], [ns.l[1][0], ns.l[1][1]]]] | sort }}{% endif %}",
            "",
        ),
    ),
    (
        "list_laugh_join",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | join('') }}{% endif %}", ""),
    ),
    (
        "list_laugh_join_method",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ''.join(ns.l) }}{% endif %}", ""),
    ),
    (
        "list_laugh_format",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ '{}'.format(ns.l) }}{% endif %}", ""),
    ),
    (
        "list_laugh_percent",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ '%s' | format(ns.l) }}{% endif %}", ""),
    ),
    ("list_laugh_tilde", Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l ~ '' }}{% endif %}", "")),
    (
        "list_laugh_count",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l.count([ns.l[0], ns.l[1]]) }}{% endif %}",
            "",
        ),
    ),
    (
        "list_laugh_in",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ [[[ns.l[0][0], ns.l[0][1]]], 1] in ns.l }}{% endif %}",
            "",
        ),
    ),
    (
        "list_laugh_in_text",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l in 'abc' }}{% endif %}", ""),
    ),
    (
        "list_laugh_string",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | string | length }}{% endif %}", ""),
    ),
    (
        "list_laugh_raise",
        Grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ raise_exception(ns.l) }}{% endif %}", ""),
    ),
    (
        "list_laugh_key",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{% set d = {ns.l: 1} %}{{ d[ns.l] }}{% endif %}",
            "",
        ),
    ),
    (
        "list_laugh_unique",
        Grow(
            "{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ [ns.l, [ns.l[0], [ns.l[1][0], ns.l[1][1]]]] | unique | list | length }}{% endif %}",
            "",
        ),
    ),
    ("list_deep", Grow("{% set ns.l = [ns.l] %}", "")),
    ("list_deep_json", Grow("{% set ns.l = [ns.l] %}", "{{ ns.l | tojson }}")),
    ("list_deep_text", Grow("{% set ns.l = [ns.l] %}", "{{ ns.l }}")),
    ("list_deep_equal", Grow("{% set ns.l = [ns.l] %}{% set ns.t = [ns.t] %}", "{{ ns.l == ns.t }}")),
    ("map_deep", Grow("{% set ns.l = {'a': ns.l} %}", "")),
    ("tuple_deep", Grow("{% set ns.l = (ns.l, 1) %}", "")),
    ("slice_deep", Grow("{% set ns.l = ns.l[::-1] %}", "{{ ns.l }}")),
    ("add_deep", Grow("{% set ns.l = ns.l + [1] %}", "{{ ns.l }}")),
    ("map_filter_deep", Grow("{% set ns.l = ns.l | map('string') %}", "{{ ns.l | list }}")),
    ("reverse_deep", Grow("{% set ns.l = ns.l | reverse %}", "{{ ns.l | list }}")),
    ("chain_deep", Grow("{% set ns.l = ns.l | chain([1]) %}", "{{ ns.l | list }}")),
    ("zip_deep", Grow("{% set ns.l = ns.l | zip %}", "{{ ns.l | list }}")),
    ("keys_deep", Grow("{% set ns.l = {'a': ns.l}.values() %}", "{{ ns.l | list }}")),
    ("namespace_cycle", Text("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns | tojson }}")),
    (
        "namespace_leak",
        Text(
            "{% for i in range(99999) %}{% set ns = namespace(t='x' * 10000) %}{% set ns.a = ns %}{% endfor %}",
        ),
    ),
    (
        "closure_deep",
        Text(
            "{% macro m() %}{{ caller() }}{% endmacro %}{% for i in range(99999) %}{% call m() %}x{% endcall %}{% endfor %}",
        ),
    ),
    ("batch", Text("{{ range(99999) | batch(2000000000, 'x') | list }}")),
    ("slice", Text("{{ range(9) | slice(2000000000) | list | length }}")),
    ("slice_fill", Text("{{ range(9) | slice(2000000000, 'x') | list | length }}")),
    ("center", Text("{{ 'x' | center(2000000000) }}")),
    ("center_method", Text("{{ 'x'.center(2000000000) }}")),
    ("wordwrap", Text("{{ ('x ' * 100000) | wordwrap(1) }}")),
    ("sort", Text("{% for i in range(99999) %}{% set x = range(99999) | sort %}{% endfor %}")),
    ("sort_list", Grow("{% set ns.l = (ns.l * 8) | sort %}", "")),
    (
        "groupby",
        Text("{% for i in range(99999) %}{% set x = messages * 1000 | groupby('role') %}{% endfor %}"),
    ),
    (
        "count_method",
        Text("{% set t = 'x' * 10000000 %}{% for i in range(99999) %}{% set x = t.count('y') %}{% endfor %}"),
    ),
    (
        "count_needles",
        Text("{% set t = 'x' * 10000000 %}{% for i in range(99999) %}{% set x = 'a'.find(t) %}{% endfor %}"),
    ),
    (
        "count_list",
        Text("{% set t = [1] * 100000 %}{% for i in range(99999) %}{% set x = t.count(2) %}{% endfor %}"),
    ),
    ("count_lazy", Text("{% set t = [1] * 2000000000 %}{{ t.count(2) }}")),
    (
        "split_method",
        Text("{% set t = 'x ' * 1000000 %}{% for i in range(99999) %}{% set x = t.split() %}{% endfor %}"),
    ),
    ("startswith_lazy", Text("{{ 'x'.startswith(['y'] * 2000000000) }}")),
    ("join_lazy", Text("{{ ''.join([''] * 2000000000) }}")),
    ("strip_set", Text("{% set t = 'x' * 1000000 %}{{ t.strip('y' * 1000000 ~ 'x') }}")),
    ("trim_set", Text("{% set t = 'x' * 1000000 %}{{ t | trim('y' * 1000000 ~ 'x') }}")),
    ("json_indent", Text("{{ [1] | tojson(indent=2000000000) }}")),
    ("json_indent_deep", Text("{{ [[[[[[1, 2], 3], 4], 5], 6], 7] | tojson(indent=9000000) }}")),
    ("json_ascii", Text("{% set t = 'é' * 10000000 %}{{ t | tojson(ensure_ascii=true) }}")),
    ("json_range", Text("{{ range(100000) | tojson }}{{ ([0] * 1000000000) | tojson }}")),
    ("strftime", Text("{% for i in range(99999) %}{{ strftime_now('%A' * 10000000) }}{% endfor %}")),
    ("pow", Text("{{ 10 ** 1000000000 }}{{ 2.0 ** 1e308 }}")),
    ("urlencode", Text("{% set t = 'é' * 10000000 %}{{ t | urlencode }}")),
    ("macro_laugh", Text("{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m('x') }}")),
    (
        "macro_laugh_text",
        Text(
            "{% macro m(n, x) %}{% if n %}{{ m(n - 1, [x, x, x]) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ m(60, 'x') }}",
        ),
    ),
    (
        "loop_laugh",
        Text(
            "{% for x in [[1]] recursive %}{% if loop.depth < 60 %}{{ loop([[x, x, x]]) }}{% else %}{{ x ~ '' }}{% endif %}{% endfor %}",
        ),
    ),
    (
        "call_laugh",
        Text(
            "{% macro m(n, x) %}{% if n %}{% call(y) m(n - 1, [x, x, x]) %}{{ y }}{% endcall %}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ m(40, 'x') }}",
        ),
    ),
    ("with_laugh", Nest(["{% set x = 1 %}", "{% with x=[x, x] %}", "{{ x ~ '' }}", "{% endwith %}", ""])),
    ("for_laugh", Nest(["{% set x = 1 %}", "{% for x in [[x, x]] %}", "{{ x ~ '' }}", "{% endfor %}", ""])),
    ("set_laugh", Nest(["{% set x = 1 %}", "{% set x = [x, x] %}", "{{ x ~ '' }}", "", ""])),
    (
        "replace_needle",
        Text(
            "{% set t = 'x' * 1000000 %}{% for i in range(99999) %}{% set x = 'a' | replace(t, '') %}{% endfor %}",
        ),
    ),
    ("format_named", Text("{% set t = 'x' * 1000000 %}{{ ('%(a)s' * 100000) | format(a=t) }}")),
    ("format_numbered", Text("{% set t = 'x' * 1000000 %}{{ ('{0}' * 100000).format(t) }}")),
    ("format_star", Text("{{ '%*d' | format(2000000000, 1) }}")),
    ("format_nested", Text("{{ '{:{}}'.format(1, 2000000000) }}")),
    ("literal", Nest(["{{ '", "xxxxxxxxxxxxxxxx", "", "", "' }}"])),
    ("plain_text", Nest(["", "xxxxxxxxxxxxxxxx", "", "", ""])),
    ("tags", Nest(["", "{{ a }}aaaa", "", "", ""])),
    ("open_braces", Nest(["", "{", "", "", ""])),
    ("open_tags", Nest(["", "{% raw", "", "", ""])),
    ("raw_tags", Nest(["{% raw %}", "{% x", "", "", ""])),
    ("comment_tags", Nest(["{# ", "{#{%", "", "", ""])),
    ("deep_if", Nest(["", "{% if a %}", "x", "{% endif %}", ""])),
    ("deep_for", Nest(["", "{% for a in b %}", "x", "{% endfor %}", ""])),
    ("deep_generation", Nest(["", "{% generation %}", "x", "{% endgeneration %}", ""])),
    ("deep_parens", Nest(["{{ ", "(", "1", ")", " }}"])),
    ("deep_lists", Nest(["{{ ", "[", "1", "]", " }}"])),
    ("deep_not", Nest(["{{ ", "not ", "1", "", " }}"])),
    ("deep_minus", Nest(["{{ ", "- ", "1", "", " }}"])),
    ("deep_if_expr", Nest(["{{ 1", " if 1 else 1", "", "", " }}"])),
    ("hidden_by_map", Nest(["{{ {'a': {}}", ".b", "", "", " }}"])),
    ("hidden_by_raw", Nest(["{% raw %}{{ ' {% endraw %}{{ a", ".b", "", "", " }}"])),
    ("hidden_by_comment", Nest(["{# {{ ' #}{{ a", ".b", "", "", " }}"])),
    ("hidden_by_quote", Nest(["{{ '\\'' ~ a", ".b", "", "", " ~ '' }}"])),
    ("chain_plus", Nest(["{{ 1", "+1", "", "", " }}"])),
    ("chain_tilde", Nest(["{{ 1", "~1", "", "", " }}"])),
    ("chain_or", Nest(["{{ a", " or a", "", "", " }}"])),
    ("chain_compare", Nest(["{{ 1", "<1", "", "", " }}"])),
    ("chain_in", Nest(["{{ 1", " in 1", "", "", " }}"])),
    ("chain_pow", Nest(["{{ 1", "**1", "", "", " }}"])),
    ("chain_attr", Nest(["{{ a", ".b", "", "", " }}"])),
    ("chain_item", Nest(["{{ a", "[0]", "", "", " }}"])),
    ("chain_call", Nest(["{{ a", "()", "", "", " }}"])),
    ("chain_filter", Nest(["{{ a", "|e", "", "", " }}"])),
    ("chain_test", Nest(["{{ a", " is a", "", "", " }}"])),
    ("chain_filter_block", Nest(["{% filter e", "|e", "", "", " %}x{% endfilter %}"])),
    ("chain_elif", Nest(["{% if a %}", "{% elif a %}", "", "", "{% endif %}"])),
    ("chain_set", Nest(["{% set ", "(", "a", ")", " = 1 %}"])),
    ("chain_set_attr", Nest(["{% set a", ".b", "", "", " = 1 %}"])),
    ("chain_call_block", Nest(["{% call a", ".b", "", "", "() %}x{% endcall %}"])),
    ("chain_for", Nest(["{% for ", "(", "a", ")", " in b %}x{% endfor %}"])),
];

/// The template of a case.
fn source(bomb: Source, times: usize) -> String {
    match bomb {
        Text(text) => text.to_owned(),
        Grow(step, after) => format!(
            "{{% set ns = namespace(t='xxxxxxxx', l=[1, 2, 3, 4, 5, 6, 7, 8]) %}}{{% for i in range(99999) %}}{step}{{% endfor %}}{after}"
        ),
        Nest([before, open, middle, close, after]) => {
            [before, &open.repeat(times), middle, &close.repeat(times), after].concat()
        }
    }
}

fn run(source: &str, bytes: usize) -> Result<usize, String> {
    let template = ChatTemplate::new(source, Vec::new(), Now::date(2024, 7, 26), Path::new("bomb.jinja"))
        .map_err(|e| e.to_string())?;
    let messages = [Message::new("user", "x".repeat(bytes)), Message::new("assistant", "Hello there")];
    template.render(&messages, true).map(|r| r.text.len()).map_err(|e| e.to_string())
}

/// Not a test of its own: what a child process runs.
#[test]
fn child() {
    let (Ok(name), Ok(bytes)) = (std::env::var(CASE), std::env::var(BYTES)) else { return };
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if waiting.recv_timeout(ENDLESS) == Err(mpsc::RecvTimeoutError::Timeout) {
            std::process::exit(9);
        }
    });
    let (_, bomb) = BOMBS.iter().find(|(n, _)| *n == name).unwrap();
    // Below the bounds a chain may compile and render; it must not break anything either.
    if let Nest(_) = bomb {
        for times in [100, 140, 490, 990, 1_900, 20_000] {
            let _ = run(&source(*bomb, times), 5);
        }
    }
    let ended = run(&source(*bomb, 100_000), bytes.parse().unwrap());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    println!("\nPEAK {}", peak.trim().trim_end_matches("kB"));
    println!("ENDED {}", ended.map_or_else(|e| e, |length| format!("rendered {length} bytes")));
    drop(done);
}

/// What went wrong with a case, if anything.
fn failure(name: &str, bytes: usize) -> Option<String> {
    let start = Instant::now();
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CASE, name)
        .env(BYTES, bytes.to_string())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line =
        |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    let (peak, ended) = (line("PEAK "), line("ENDED "));
    if std::env::var_os("TUNESMITH_BOMB_LIST").is_some() {
        println!("{name:24} {:>6} ms {peak:>8} KiB {ended}", start.elapsed().as_millis());
    }
    let refused = ended.starts_with("the chat template failed: ")
        || ended.starts_with("`bomb.jinja`: the chat template does not parse: ");
    let small = peak.parse::<u64>().is_ok_and(|kib| kib <= MAX_PEAK_KIB);
    (!out.status.success() || !refused || !small)
        .then(|| format!("{name}: {:?}, {peak} KiB at the peak, {ended:?}", out.status))
}

/// All failures of `cases`, two at a time.
fn failures(cases: &[(&str, usize)]) -> String {
    let next = AtomicUsize::new(0);
    let mut all = String::new();
    std::thread::scope(|scope| {
        let work = || {
            let mut found = Vec::new();
            while let Some((name, bytes)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.extend(failure(name, *bytes));
            }
            found
        };
        let other = scope.spawn(work);
        for line in work().into_iter().chain(other.join().unwrap()) {
            writeln!(all, "{line}").unwrap();
        }
    });
    all
}

#[test]
fn every_bomb_ends_in_a_sentence() {
    let only = std::env::var("TUNESMITH_BOMB_ONLY").unwrap_or_default();
    let cases: Vec<_> = BOMBS.iter().map(|(name, _)| (*name, 5)).filter(|(n, _)| n.contains(&only)).collect();
    assert_eq!(failures(&cases), "");
}

/// A long conversation pays for more steps, and memory has a bound all the same.
#[test]
fn a_long_conversation_does_not_lift_the_bounds() {
    let cases = [
        "tilde",
        "plus",
        "replace",
        "indent",
        "format_method",
        "join",
        "capture",
        "generation",
        "split_method",
    ];
    assert_eq!(failures(&cases.map(|name| (name, 4 << 20))), "");
}
