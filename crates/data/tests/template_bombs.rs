//! Templates made to exhaust time, memory or the stack: each ends in one sentence, inside its bounds.
//!
//! Every case runs in a process of its own, so that a crash or an endless loop is one failed case and the peak of its
//! memory can be read.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tunesmith_data::{ChatTemplate, Message, Now};

/// The case a child process is to run.
const CASE: &str = "TUNESMITH_BOMB";
/// The most memory a case may touch, in KiB.
const MAX_PEAK_KIB: u64 = 512 << 10;
/// After this long a case counts as endless. Far from what the slowest takes on a busy machine.
const ENDLESS: Duration = Duration::from_secs(20);

/// `(name, template, a word of the sentence it must end in)`.
fn cases() -> Vec<(&'static str, String, &'static str)> {
    let grow = |step: &str| {
        format!(
            "{{% set ns = namespace(t='xxxxxxxx', l=[1, 2, 3, 4, 5, 6, 7, 8]) %}}{{% for i in range(99999) %}}{step}{{% endfor %}}"
        )
    };
    let long = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let chain = |start: &str, link: &str, times: usize| format!("{{{{ {start}{} }}}}", link.repeat(times));
    let elifs = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(100_000));
    vec![
        ("tilde", grow("{% set ns.t = ns.t ~ ns.t %}"), "step limit"),
        ("plus", grow("{% set ns.t = ns.t + ns.t %}"), "step limit"),
        ("replace", grow("{% set ns.t = ns.t | replace('x', 'xxxxxxxxxxxxxxxx') %}"), "step limit"),
        ("replace_method", grow("{% set ns.t = ns.t.replace('x', 'xxxxxxxxxxxxxxxx') %}"), "step limit"),
        ("replace_empty", grow("{% set ns.t = ns.t.replace('', ns.t) %}"), "step limit"),
        ("indent", grow("{% set ns.t = (ns.t ~ '\n') | indent(99999999, true) %}"), ""),
        ("indent_grow", grow("{% set ns.t = (ns.t ~ '\n' ~ ns.t) | indent(9999, true) %}"), ""),
        ("format", grow("{% set ns.t = '%s%s' | format(ns.t, ns.t) %}"), ""),
        ("format_width", "{{ '%2000000000d' | format(1) }}".into(), ""),
        ("format_method", grow("{% set ns.t = '{0}{0}'.format(ns.t) %}"), ""),
        ("format_method_width", "{{ '{:>2000000000}'.format(1) }}".into(), ""),
        ("format_method_many", format!("{{% set f = '{}' %}}{{% for i in range(99999) %}}{{% set x = f.format('a') %}}{{% endfor %}}", "{0:>60000}".repeat(1000)), ""),
        ("join", grow("{% set ns.t = [ns.t, ns.t, ns.t] | join(ns.t) %}"), "step limit"),
        ("join_method", grow("{% set ns.t = ns.t.join([ns.t, ns.t, ns.t]) %}"), "step limit"),
        ("join_range", grow("{% set ns.t = range(99999) | join(ns.t) %}"), "step limit"),
        ("times_text", "{{ 'x' * 2000000000 }}".into(), "step limit"),
        ("times_list", "{{ ([0] * 2000000000) | list | length }}".into(), ""),
        ("times_list_show", "{{ [0] * 2000000000 }}".into(), ""),
        ("times_list_nested", grow("{% set ns.l = ns.l * 1000 %}{{ ns.l | tojson }}"), ""),
        ("range", "{{ range(2000000000) | list | length }}".into(), ""),
        ("range_loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}".into(), "step limit"),
        ("macro_recursion", "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".into(), ""),
        ("macro_tree", "{% macro m(x) %}{% if x %}{{ m(x - 1) }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(90) }}".into(), "step limit"),
        ("loop_recursion", "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(), ""),
        ("include_itself", "{% include 'chat_template' %}".into(), ""),
        ("extends_itself", "{% extends 'chat_template' %}".into(), ""),
        ("import_itself", "{% import 'chat_template' as t %}{{ t.x }}".into(), ""),
        ("include_file", "{% include '/etc/passwd' %}".into(), ""),
        ("dunder", "{{ ''.__class__.__mro__[1].__subclasses__() }}".into(), ""),
        ("output", "{% set t = 'x' * 100000 %}{% for i in range(99999) %}{{ t }}{% endfor %}".into(), ""),
        ("capture", "{% set t = 'x' * 100000 %}{% set u %}{% for i in range(99999) %}{{ t }}{% endfor %}{% endset %}".into(), ""),
        ("generation", "{% set t = 'x' * 100000 %}{% generation %}{% for i in range(99999) %}{{ t }}{% endfor %}{% endgeneration %}".into(), ""),
        ("list_growth", grow("{% set ns.l = ns.l + ns.l %}{% set x = ns.l | list %}"), ""),
        ("list_laugh_json", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | tojson }}{% endif %}"), ""),
        ("list_laugh_sorted", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | tojson(sort_keys=true) }}{% endif %}"), ""),
        ("list_laugh_text", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l }}{% endif %}"), ""),
        ("list_laugh_pprint", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | pprint }}{% endif %}"), ""),
        ("list_laugh_equal", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l == [ns.l[0], [ns.l[1][0], ns.l[1][1]]] }}{% endif %}"), ""),
        ("list_laugh_sort", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ [ns.l, [ns.l[0], [ns.l[1][0], ns.l[1][1]]]] | sort }}{% endif %}"), ""),
        ("list_laugh_join", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | join('') }}{% endif %}"), ""),
        ("list_laugh_join_method", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ''.join(ns.l) }}{% endif %}"), ""),
        ("list_laugh_format", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ '{}'.format(ns.l) }}{% endif %}"), ""),
        ("list_laugh_percent", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ '%s' | format(ns.l) }}{% endif %}"), ""),
        ("list_laugh_tilde", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l ~ '' }}{% endif %}"), ""),
        ("list_laugh_count", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l.count([ns.l[0], ns.l[1]]) }}{% endif %}"), ""),
        ("list_laugh_in", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ [[[ns.l[0][0], ns.l[0][1]]], 1] in ns.l }}{% endif %}"), ""),
        ("list_laugh_in_text", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l in 'abc' }}{% endif %}"), ""),
        ("list_laugh_string", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ ns.l | string | length }}{% endif %}"), ""),
        ("list_laugh_raise", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ raise_exception(ns.l) }}{% endif %}"), ""),
        ("list_laugh_key", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{% set d = {ns.l: 1} %}{{ d[ns.l] }}{% endif %}"), ""),
        ("list_laugh_unique", grow("{% set ns.l = [ns.l, ns.l] %}{% if i > 40 %}{{ [ns.l, [ns.l[0], [ns.l[1][0], ns.l[1][1]]]] | unique | list | length }}{% endif %}"), ""),
        ("list_deep", grow("{% set ns.l = [ns.l] %}"), ""),
        ("list_deep_json", grow("{% set ns.l = [ns.l] %}") + "{{ ns.l | tojson }}", ""),
        ("list_deep_text", grow("{% set ns.l = [ns.l] %}") + "{{ ns.l }}", ""),
        ("list_deep_equal", grow("{% set ns.l = [ns.l] %}{% set ns.t = [ns.t] %}") + "{{ ns.l == ns.t }}", ""),
        ("map_deep", grow("{% set ns.l = {'a': ns.l} %}"), ""),
        ("tuple_deep", grow("{% set ns.l = (ns.l, 1) %}"), ""),
        ("slice_deep", grow("{% set ns.l = ns.l[::-1] %}") + "{{ ns.l }}", ""),
        ("add_deep", grow("{% set ns.l = ns.l + [1] %}") + "{{ ns.l }}", ""),
        ("map_filter_deep", grow("{% set ns.l = ns.l | map('string') %}") + "{{ ns.l | list }}", ""),
        ("reverse_deep", grow("{% set ns.l = ns.l | reverse %}") + "{{ ns.l | list }}", ""),
        ("chain_deep", grow("{% set ns.l = ns.l | chain([1]) %}") + "{{ ns.l | list }}", ""),
        ("zip_deep", grow("{% set ns.l = ns.l | zip %}") + "{{ ns.l | list }}", ""),
        ("keys_deep", grow("{% set ns.l = {'a': ns.l}.values() %}") + "{{ ns.l | list }}", ""),
        ("namespace_cycle", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns | tojson }}".into(), ""),
        ("namespace_leak", "{% for i in range(99999) %}{% set ns = namespace(t='x' * 10000) %}{% set ns.a = ns %}{% endfor %}".into(), ""),
        ("closure_deep", "{% macro m() %}{{ caller() }}{% endmacro %}{% for i in range(99999) %}{% call m() %}x{% endcall %}{% endfor %}".into(), ""),
        ("batch", "{{ range(99999) | batch(2000000000, 'x') | list }}".into(), ""),
        ("slice", "{{ range(9) | slice(2000000000) | list | length }}".into(), ""),
        ("slice_fill", "{{ range(9) | slice(2000000000, 'x') | list | length }}".into(), ""),
        ("center", "{{ 'x' | center(2000000000) }}".into(), ""),
        ("center_method", "{{ 'x'.center(2000000000) }}".into(), ""),
        ("wordwrap", "{{ ('x ' * 100000) | wordwrap(1) }}".into(), ""),
        ("sort", "{% for i in range(99999) %}{% set x = range(99999) | sort %}{% endfor %}".into(), "step limit"),
        ("sort_list", grow("{% set ns.l = (ns.l * 8) | sort %}"), ""),
        ("groupby", "{% for i in range(99999) %}{% set x = messages * 1000 | groupby('role') %}{% endfor %}".into(), ""),
        ("count_method", "{% set t = 'x' * 10000000 %}{% for i in range(99999) %}{% set x = t.count('y') %}{% endfor %}".into(), "step limit"),
        ("count_needles", "{% set t = 'x' * 10000000 %}{% for i in range(99999) %}{% set x = 'a'.find(t) %}{% endfor %}".into(), ""),
        ("count_list", "{% set t = [1] * 100000 %}{% for i in range(99999) %}{% set x = t.count(2) %}{% endfor %}".into(), "step limit"),
        ("count_lazy", "{% set t = [1] * 2000000000 %}{{ t.count(2) }}".into(), ""),
        ("split_method", "{% set t = 'x ' * 1000000 %}{% for i in range(99999) %}{% set x = t.split() %}{% endfor %}".into(), "step limit"),
        ("startswith_lazy", "{{ 'x'.startswith(['y'] * 2000000000) }}".into(), ""),
        ("join_lazy", "{{ ''.join([''] * 2000000000) }}".into(), ""),
        ("strip_set", "{% set t = 'x' * 1000000 %}{{ t.strip('y' * 1000000 ~ 'x') }}".into(), ""),
        ("trim_set", "{% set t = 'x' * 1000000 %}{{ t | trim('y' * 1000000 ~ 'x') }}".into(), ""),
        ("json_indent", "{{ [1] | tojson(indent=2000000000) }}".into(), ""),
        ("json_indent_deep", "{{ [[[[[[1, 2], 3], 4], 5], 6], 7] | tojson(indent=9000000) }}".into(), ""),
        ("json_ascii", "{% set t = 'é' * 10000000 %}{{ t | tojson(ensure_ascii=true) }}".into(), ""),
        ("json_range", "{{ range(100000) | tojson }}{{ ([0] * 1000000000) | tojson }}".into(), ""),
        ("strftime", "{% for i in range(99999) %}{{ strftime_now('%A' * 10000000) }}{% endfor %}".into(), ""),
        ("pow", "{{ 10 ** 1000000000 }}{{ 2.0 ** 1e308 }}".into(), ""),
        ("urlencode", "{% set t = 'é' * 10000000 %}{{ t | urlencode }}".into(), ""),
        ("literal", format!("{{{{ '{}' }}}}", "x".repeat(64 << 20)), ""),
        ("plain_text", "x".repeat(64 << 20), ""),
        ("tags", "{{ a }}".repeat(1_000_000), ""),
        ("open_braces", "{".repeat(1_000_000), ""),
        ("open_comments", "{#".repeat(1_000_000), ""),
        ("open_tags", "{% raw".repeat(100_000), ""),
        ("deep_if", long("{% if a %}", "x", "{% endif %}", 100_000), ""),
        ("deep_for", long("{% for a in b %}", "x", "{% endfor %}", 100_000), ""),
        ("deep_generation", long("{% generation %}", "x", "{% endgeneration %}", 100_000), ""),
        ("deep_generation_some", long("{% generation %}", "x", "{% endgeneration %}", 60), ""),
        ("deep_parens", format!("{{{{ {} }}}}", long("(", "1", ")", 100_000)), ""),
        ("deep_lists", format!("{{{{ {} }}}}", long("[", "1", "]", 100_000)), ""),
        ("deep_not", chain("", "not ", 100_000), ""),
        ("deep_minus", chain("", "- ", 100_000), ""),
        ("deep_if_expr", chain("1", " if 1 else 1", 100_000), ""),
        ("chain_plus", chain("1", "+1", 100_000), ""),
        ("chain_tilde", chain("1", "~1", 100_000), ""),
        ("chain_or", chain("a", " or a", 100_000), ""),
        ("chain_compare", chain("1", "<1", 100_000), ""),
        ("chain_in", chain("1", " in 1", 100_000), ""),
        ("chain_pow", chain("1", "**1", 100_000), ""),
        ("chain_attr", chain("a", ".b", 100_000), ""),
        ("chain_item", chain("a", "[0]", 100_000), ""),
        ("chain_call", chain("a", "()", 100_000), ""),
        ("chain_filter", chain("a", "|e", 100_000), ""),
        ("chain_test", chain("a", " is a", 100_000), ""),
        ("chain_filter_block", format!("{{% filter {}e %}}x{{% endfilter %}}", "e|".repeat(100_000)), ""),
        ("chain_elif", elifs, ""),
        ("chain_set", format!("{{% set {}a = 1 %}}", "(".repeat(100_000)), ""),
        ("chain_set_attr", format!("{{% set a{} = 1 %}}", ".b".repeat(100_000)), ""),
        ("chain_call_block", format!("{{% call a{}() %}}x{{% endcall %}}", ".b".repeat(100_000)), ""),
        ("chain_for_unpack", format!("{{% for {}a in b %}}x{{% endfor %}}", "(".repeat(100_000)), ""),
    ]
}

fn run(source: &str) -> Result<usize, String> {
    let template = ChatTemplate::new(source, Vec::new(), Now::date(2024, 7, 26), Path::new("bomb.jinja"))
        .map_err(|e| e.to_string())?;
    let messages = [Message::new("user", "Hello there"), Message::new("assistant", "General")];
    template.render(&messages, true).map(|r| r.text.len()).map_err(|e| e.to_string())
}

/// Not a test of its own: what a child process runs.
#[test]
fn child() {
    let Ok(name) = std::env::var(CASE) else { return };
    let (_, source, _) = cases().into_iter().find(|(n, ..)| *n == name).unwrap();
    let ended = run(&source);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    println!("\nPEAK {}", peak.trim().trim_end_matches("kB"));
    println!("ENDED {}", format!("{ended:?}").chars().take(300).collect::<String>());
}

#[test]
fn survey() {
    let only = std::env::var("ONLY").ok();
    for (name, _, _) in cases().iter().filter(|(n, ..)| only.as_ref().is_none_or(|o| n.contains(o.as_str())))
    {
        let start = Instant::now();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CASE, name)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() && start.elapsed() < ENDLESS {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = |k: &str| text.lines().find_map(|l| l.strip_prefix(k)).unwrap_or("?").trim().to_owned();
        let _ = MAX_PEAK_KIB;
        println!(
            "{name:24} {:>7} ms {:>8} KiB {:?} {}",
            start.elapsed().as_millis(),
            line("PEAK "),
            out.status.code(),
            line("ENDED ").chars().take(130).collect::<String>()
        );
    }
}
