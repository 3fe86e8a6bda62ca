//! Rows that say the same: exactly, across training and validation rows, and nearly, in and across both.
//!
//! Signatures are cut into bands of five hashes; rows that agree in a whole band are candidates (Leskovec, Rajaraman
//! and Ullman, chapter 3), and each candidate is confirmed on the sets themselves, which wait in a temporary file. So a
//! reported pair is always one; of the pairs that are 0.8 alike about 2 in 100 are missed, at 0.9 hardly any.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::shingles::{HASHES, Signature, Signer, compared, estimate, jaccard, shingles};
use crate::dataset::Prepared;
use crate::error::Error;
use crate::sip::siphash24;
use crate::source::Place;
use crate::spool::{Spool, SpoolWriter};

const BAND: usize = 5;
const BANDS: usize = HASHES / BAND;
/// How far below the threshold an estimate may lie for the pair to be looked at.
const MARGIN: f64 = 0.1;
/// Rows of one bucket that a row is compared with: those most like it in the next band too.
const REACH: usize = 32;
/// Candidates that a row may be looked at with in vain.
const ATTEMPTS: u8 = 16;
/// Refused candidates that are remembered, so as not to be looked at again in the next band.
const REMEMBERED: usize = 4;
/// Pairs that are listed.
const LISTED: usize = 10;

/// How to look for rows that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct NearOptions {
    /// Smallest Jaccard index of two rows that are nearly the same.
    pub threshold: f64,
    /// Rows that are compared at most; of more, a sample is, the same one in every run.
    pub max_rows: usize,
    /// Where the temporary file goes.
    pub dir: PathBuf,
}

impl NearOptions {
    /// An index of 0.8, and 200,000 rows.
    pub fn new(dir: PathBuf) -> Self {
        Self { threshold: 0.8, max_rows: 200_000, dir }
    }
}

/// A row, across sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The source: 0 is the first that rows were taken from.
    pub source: usize,
    /// Where in it.
    pub place: Place,
}

/// Two rows that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The validation row of a pair across, the later row of a pair within.
    pub row: Spot,
    /// The other.
    pub like: Spot,
    /// Their Jaccard index.
    pub similarity: f64,
}

/// Rows that have their like, and the first few pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Matches {
    /// How many rows.
    pub rows: usize,
    /// The first of them, each with one row it is like.
    pub pairs: Vec<Pair>,
}

/// What [`NearDuplicates`] found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Similar {
    /// The smallest Jaccard index that counts.
    pub threshold: f64,
    /// Rows that are trained or evaluated on.
    pub rows: usize,
    /// Validation rows among them.
    pub validation_rows: usize,
    /// Rows that repeat no earlier one of their source exactly.
    pub distinct: usize,
    /// Those of them that were compared with each other; fewer than `distinct` when there are too many.
    pub compared: usize,
    /// Validation rows that equal a training row exactly.
    pub exact_across: Matches,
    /// Further validation rows that nearly equal a training row.
    pub near_across: Matches,
    /// Rows that nearly equal an earlier row on the same side.
    pub near_within: Matches,
}

impl Similar {
    /// Whether only a sample was compared.
    pub fn is_sample(&self) -> bool {
        self.compared < self.distinct
    }
}

/// A row that is compared.
#[derive(Debug)]
struct Entry {
    row: u32,
    /// Number of its set in the temporary file.
    set: u32,
    signature: Signature,
}

/// Takes the rows as they come and compares them once it is known which are held out.
///
/// In memory are 16 bytes a row and about 130 more for each row that is compared.
#[derive(Debug)]
pub struct NearDuplicates {
    options: NearOptions,
    signer: Signer,
    sets: SpoolWriter,
    pushed: u32,
    bytes: Vec<u8>,
    /// Fingerprint and packed spot of every row.
    rows: Vec<(u64, u64)>,
    entries: Vec<Entry>,
    distinct: usize,
    source: usize,
    /// Rows are compared whose fingerprint ends in so many zero bits: one in 2^level.
    level: u32,
}

impl NearDuplicates {
    /// Without rows.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn new(options: NearOptions) -> Result<Self, Error> {
        let sets = SpoolWriter::new(&options.dir)?;
        Ok(Self {
            options,
            signer: Signer::new(),
            sets,
            pushed: 0,
            bytes: Vec::new(),
            rows: Vec::new(),
            entries: Vec::new(),
            distinct: 0,
            source: 0,
            level: 0,
        })
    }

    /// Rows from here on are of the next source.
    pub fn next_source(&mut self) {
        self.source += 1;
    }

    /// Takes a row, if it is trained or evaluated on.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn add(&mut self, row: &Prepared) -> Result<(), Error> {
        if !row.fate.is_kept() {
            return Ok(());
        }
        let fingerprint = row.fingerprint as u64;
        let number = self.rows.len() as u32;
        self.rows.push((fingerprint, pack(Spot { source: self.source, place: row.row.place })));
        if row.repeats {
            return Ok(());
        }
        self.distinct += 1;
        if fingerprint.trailing_zeros() < self.level {
            return Ok(());
        }
        let set = shingles(&compared(&row.row));
        self.bytes.clear();
        self.bytes.extend(set.iter().flat_map(|piece| piece.to_le_bytes()));
        self.sets.push([self.bytes.as_slice()])?;
        self.entries.push(Entry { row: number, set: self.pushed, signature: self.signer.sign(&set) });
        self.pushed += 1;
        while self.entries.len() > self.options.max_rows.max(1) && self.level < u64::BITS {
            self.level += 1;
            let (rows, level) = (&self.rows, self.level);
            self.entries.retain(|e| rows[e.row as usize].0.trailing_zeros() >= level);
        }
        Ok(())
    }

    /// Compares the rows. `is_validation` says of a row, by its number among those taken, whether it is held out.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn finish(self, is_validation: &dyn Fn(usize) -> bool) -> Result<Similar, Error> {
        let Self { options, sets, rows, mut entries, distinct, .. } = self;
        entries.shrink_to_fit();
        let held: Vec<bool> = (0..rows.len()).map(is_validation).collect();
        let mut similar = Similar {
            threshold: options.threshold,
            rows: rows.len(),
            validation_rows: held.iter().filter(|held| **held).count(),
            distinct,
            compared: entries.len(),
            ..Similar::default()
        };
        let leaked = exact_across(&rows, &held, &mut similar.exact_across);
        let mut search = Search {
            threshold: options.threshold,
            sets: sets.finish()?,
            held: entries.iter().map(|e| held[e.row as usize]).collect(),
            found: entries
                .iter()
                .map(|e| Found { across_done: leaked[e.row as usize], ..Found::default() })
                .collect(),
            entries,
            buffers: Default::default(),
        };
        for band in 0..BANDS {
            search.band(band)?;
        }
        for (entry, found) in search.entries.iter().zip(&search.found) {
            let spot = |entry: &Entry| unpack(rows[entry.row as usize].1);
            let sides = [(found.across, &mut similar.near_across), (found.within, &mut similar.near_within)];
            for (other, matches) in sides {
                if let Some((other, similarity)) = other {
                    let like = spot(&search.entries[other as usize]);
                    add(matches, Pair { row: spot(entry), like, similarity: f64::from(similarity) });
                }
            }
        }
        Ok(similar)
    }
}

fn add(matches: &mut Matches, pair: Pair) {
    matches.rows += 1;
    if matches.pairs.len() < LISTED {
        matches.pairs.push(pair);
    }
}

/// Validation rows that equal a training row, and for each row whether it is one.
fn exact_across(rows: &[(u64, u64)], held: &[bool], matches: &mut Matches) -> Vec<bool> {
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_unstable_by_key(|&i| (rows[i as usize].0, i));
    // The training row plus one; zero is none.
    let mut leaked = vec![0u32; rows.len()];
    for group in order.chunk_by(|a, b| rows[*a as usize].0 == rows[*b as usize].0) {
        let Some(&trained) = group.iter().find(|i| !held[**i as usize]) else { continue };
        for &row in group.iter().filter(|i| held[**i as usize]) {
            leaked[row as usize] = trained + 1;
        }
    }
    for (row, trained) in leaked.iter().enumerate().filter(|(_, trained)| **trained > 0) {
        let (row, like) = (unpack(rows[row].1), unpack(rows[*trained as usize - 1].1));
        add(matches, Pair { row, like, similarity: 1.0 });
    }
    leaked.into_iter().map(|trained| trained > 0).collect()
}

/// What is known of one entry.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    within: Option<(u32, f32)>,
    across: Option<(u32, f32)>,
    /// An exact duplicate across is known already.
    across_done: bool,
    failed: u8,
    refused: [u32; REMEMBERED],
}

struct Search {
    threshold: f64,
    sets: Spool,
    entries: Vec<Entry>,
    held: Vec<bool>,
    found: Vec<Found>,
    buffers: [(Vec<u8>, Vec<u64>); 2],
}

impl Search {
    /// Looks at the pairs that agree in a band.
    fn band(&mut self, band: usize) -> Result<(), Error> {
        let key = |entry: &Entry, band: usize| {
            let mut bytes = [0; 2 * BAND];
            for (i, hash) in entry.signature[BAND * band..][..BAND].iter().enumerate() {
                bytes[2 * i..][..2].copy_from_slice(&hash.to_le_bytes());
            }
            siphash24(band as u64, 0x6261_6e64, &bytes) as u32
        };
        let next = (band + 1) % BANDS;
        let mut order: Vec<(u32, u32, u32)> =
            self.entries.iter().enumerate().map(|(i, e)| (key(e, band), key(e, next), i as u32)).collect();
        order.sort_unstable();
        for bucket in order.chunk_by(|a, b| a.0 == b.0) {
            for (at, &(_, _, row)) in bucket.iter().enumerate().skip(1) {
                let near = bucket[at.saturating_sub(REACH)..at].iter().rev();
                for &(_, _, other) in near {
                    self.pair(row.min(other), row.max(other))?;
                }
            }
        }
        Ok(())
    }

    /// Looks at a pair, unless its rows have their like already.
    fn pair(&mut self, earlier: u32, later: u32) -> Result<(), Error> {
        let across = self.held[earlier as usize] != self.held[later as usize];
        // The row that the pair would be reported of: the later one, or the validation row.
        let (row, other) =
            if across && self.held[earlier as usize] { (earlier, later) } else { (later, earlier) };
        let found = &self.found[row as usize];
        let known = if across { found.across_done || found.across.is_some() } else { found.within.is_some() };
        // Numbers are remembered plus one: zero is nobody.
        if known || found.failed >= ATTEMPTS || found.refused.contains(&(other + 1)) {
            return Ok(());
        }
        let (a, b) = (&self.entries[row as usize], &self.entries[other as usize]);
        if estimate(&a.signature, &b.signature) < self.threshold - MARGIN {
            return Ok(());
        }
        let sets = [a.set, b.set];
        for (set, (bytes, pieces)) in sets.iter().zip(&mut self.buffers) {
            self.sets.read(*set as usize, bytes)?;
            pieces.clear();
            pieces.extend(bytes.as_chunks::<8>().0.iter().map(|piece| u64::from_le_bytes(*piece)));
        }
        let similarity = jaccard(&self.buffers[0].1, &self.buffers[1].1);
        let found = &mut self.found[row as usize];
        if similarity >= self.threshold {
            let side = if across { &mut found.across } else { &mut found.within };
            *side = Some((other, similarity as f32));
        } else {
            found.refused[found.failed as usize % REMEMBERED] = other + 1;
            found.failed += 1;
        }
        Ok(())
    }
}

const NUMBER_BITS: u32 = 36;
const FILE_BITS: u32 = 20;

/// A spot in eight bytes: 2^36 lines in each of a million files.
fn pack(spot: Spot) -> u64 {
    let Place { file, number } = spot.place;
    let file = u64::from(file).min((1 << FILE_BITS) - 1);
    ((spot.source as u64) << (FILE_BITS + NUMBER_BITS))
        | (file << NUMBER_BITS)
        | number.min((1 << NUMBER_BITS) - 1)
}

fn unpack(packed: u64) -> Spot {
    let file = (packed >> NUMBER_BITS) & ((1 << FILE_BITS) - 1);
    let place = Place { file: file as u32, number: packed & ((1 << NUMBER_BITS) - 1) };
    Spot { source: (packed >> (FILE_BITS + NUMBER_BITS)) as usize, place }
}
