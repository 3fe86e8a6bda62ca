//! Compressed files: read, and refused where they are damaged, mislabelled or bombs.

use tunesmith_data::{Limits, SourceOptions};

use crate::kit::{Folder, faults_of, gzip, read, read_all, sha256, zstd};

fn lines(n: usize) -> String {
    let line = |i| format!("{{\"id\": {i}, \"text\": \"{}\"}}", i * i * 7919 % 1_000_003);
    (0..n).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn compressed_text_gives_the_same_rows_and_the_hash_of_what_is_stored() {
    let folder = Folder::new();
    let text = lines(5000);
    let plain = read(folder.write("a.jsonl", &text)).objects();
    let (first, second) = text.split_at(text.len() / 3);
    let two = |pack: fn(&[u8]) -> Vec<u8>| [pack(first.as_bytes()), pack(second.as_bytes())].concat();
    for (name, bytes) in [
        ("b.jsonl.gz", gzip(text.as_bytes())),
        ("c.jsonl.zst", zstd(text.as_bytes())),
        ("d.jsonl.gz", two(gzip)),
        ("e.jsonl.zst", two(zstd)),
    ] {
        let outcome = read(folder.write(name, &bytes));
        assert_eq!(outcome.files[0].sha256, sha256(&bytes), "{name}");
        assert_eq!(outcome.files[0].bytes, bytes.len() as u64);
        assert!(outcome.objects() == plain, "{name}");
    }
    let csv = read(folder.write("f.csv.gz", gzip(b"a,b\n1,2\n")));
    assert_eq!(csv.objects().len(), 1);
}

#[test]
fn names_that_lie_are_refused_with_the_fix() {
    assert_eq!(
        faults_of("a.jsonl", gzip(b"{}")),
        ["`a.jsonl` is gzip, but its name says text; add .gz to its name or unpack it"]
    );
    assert_eq!(
        faults_of("a.csv", zstd(b"a\n1\n")),
        ["`a.csv` is zstd, but its name says text; add .zst to its name or unpack it"]
    );
    assert_eq!(
        faults_of("a.jsonl.gz", zstd(b"{}")),
        ["`a.jsonl.gz` is zstd, but its name says gzip; add .zst to its name or unpack it"]
    );
    assert_eq!(
        faults_of("a.jsonl.gz", b"{}"),
        [
            "`a.jsonl.gz` is not compressed, but its name says gzip; take the gzip ending from its name, or fetch it again"
        ]
    );
    assert!(faults_of("a.jsonl.zst", b"")[0].starts_with("`a.jsonl.zst` is empty, but its name says zstd"));
    assert!(faults_of("a.jsonl.gz", gzip(&gzip(b"{}")))[0].starts_with("`a.jsonl.gz (unpacked)` is gzip"));
    assert_eq!(
        faults_of("a.parquet.gz", gzip(b"PAR1")),
        [
            "`a.parquet.gz`: Parquet is compressed inside and cannot be read through another compression; unpack it"
        ]
    );
}

#[test]
fn truncated_and_damaged_streams_name_the_line() {
    let folder = Folder::new();
    let text = lines(20_000);
    for (name, bytes) in [("a.jsonl.gz", gzip(text.as_bytes())), ("a.jsonl.zst", zstd(text.as_bytes()))] {
        let outcome = read(folder.write(name, &bytes[..bytes.len() / 2]));
        let rows = outcome.rows.len();
        assert!(rows > 100, "{name}: {rows}");
        let (start, end) = folder
            .bare(outcome.fault.as_ref().unwrap())
            .split_once(" behind line ")
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let packing = if name.ends_with("gz") { "gzip" } else { "zstd" };
        assert_eq!(start, format!("`{name}`: the {packing} stream is damaged or cut off"));
        assert_eq!(end, format!("{rows} (it ends too early); compress or fetch the file again"));
        assert_eq!(outcome.rows.last().unwrap().1, rows as u64);
        // The last bytes hold a checksum.
        let mut wrong = bytes.clone();
        let last = wrong.len() - 6;
        wrong[last] ^= 0x55;
        let fault = read(folder.write(name, &wrong)).fault.unwrap();
        assert!(fault.contains("is damaged or cut off behind line"), "{fault}");
    }
}

#[test]
fn bombs_end_in_a_sentence() {
    let folder = Folder::new();
    let text = format!("{{\"a\": \"{}\"}}\n", "x".repeat(20_000)).repeat(150);
    for (name, bytes) in [("a.jsonl.gz", gzip(text.as_bytes())), ("a.jsonl.zst", zstd(text.as_bytes()))] {
        let path = [folder.write(name, &bytes).display().to_string()];
        // Small files may be as dense as they like.
        assert_eq!(read(&path[0]).objects().len(), 150);
        let limits = Limits { ratio_after: 1 << 20, ..Limits::default() };
        let options = SourceOptions { limits, ..SourceOptions::default() };
        let fault = read_all(&path, &options).fault.unwrap();
        assert!(fault.contains("it unpacks to more than 100 times its size ("), "{fault}");
        let limits = Limits { output_bytes: 1 << 20, ..Limits::default() };
        let options = SourceOptions { limits, ..SourceOptions::default() };
        let outcome = read_all(&path, &options);
        assert_eq!(
            folder.bare(&outcome.fault.unwrap()),
            format!("`{name}`: it unpacks to more than 1048576 bytes; split it or raise the bound")
        );
        assert!(outcome.rows.len() > 40);
    }
}

#[test]
fn plain_files_end_at_the_bound_too() {
    let folder = Folder::new();
    let path = [folder.write("a.jsonl", "{\"a\": \"x\"}\n".repeat(1000).as_bytes()).display().to_string()];
    let limits = Limits { output_bytes: 6000, ..Limits::default() };
    let outcome = read_all(&path, &SourceOptions { limits, ..SourceOptions::default() });
    let fault = folder.bare(&outcome.fault.unwrap());
    assert_eq!(fault, "`a.jsonl`: it has more than 6000 bytes; split it or raise the bound");
}
