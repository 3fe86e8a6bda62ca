//! The tables that TRL publishes for its collator (`TestDataCollatorForLanguageModeling`),
//! made again by what lays out a micro-batch here.
//!
//! A batch here ends each document before its last target, which nothing is predicted from, and leaves out documents
//! without a target; the tables hold these tokens too. They are put back here, with no label of their own.

use tunesmith_data::{Example, Place};

use super::batches::{batch, micro_batches};
use crate::config::TrainConfig;
use crate::plan::MicroBatches;

/// The label of what is no target.
const NONE: i64 = -100;

/// A table of one row: ids, positions, labels.
type Table = (Vec<u32>, Vec<usize>, Vec<i64>);

fn examples(documents: &[(&[u32], &[u8])]) -> Vec<Example> {
    let one = |(ids, mask): &(&[u32], &[u8])| {
        // As rows come from the encoder: all of a document may be trained but its first token.
        let trained = (0..ids.len()).map(|t| t > 0 && mask.get(t).is_none_or(|m| *m == 1)).collect();
        Example { ids: ids.to_vec(), trained, place: Place { file: 0, number: 1 } }
    };
    documents.iter().map(one).collect()
}

/// The one micro-batch of all documents as TRL writes it, and where its documents begin and end.
fn table(documents: &[(&[u32], &[u8])], micro_batch_size: usize) -> (Table, Vec<usize>) {
    let examples = examples(documents);
    let examples: Vec<&Example> = examples.iter().collect();
    let config = TrainConfig { batch_size: examples.len(), micro_batch_size, ..TrainConfig::default() };
    let lengths = examples.iter().map(|e| e.ids.len()).collect();
    let cut = MicroBatches::usual(&config, &lengths, 0, 1);
    let micro = micro_batches(&config, &cut, &examples).unwrap();
    assert_eq!(micro.len(), 1);
    let batch = batch(&examples, &micro[0], 1);
    let (mut ids, mut positions, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ends, mut sequence) = (vec![0], 0);
    for (number, &row) in micro[0].iter().enumerate() {
        let from = ids.len();
        if batch.documents.contains(&number) {
            let rows = batch.sequences.key_rows(sequence);
            sequence += 1;
            ids.extend_from_slice(&batch.ids[rows.clone()]);
            positions.extend_from_slice(&batch.positions[rows.clone()]);
            assert_eq!(&batch.sequences.query_positions()[rows.clone()], &batch.positions[rows.clone()]);
            labels.push(NONE);
            for row in rows {
                let selected = batch.rows.iter().position(|r| *r == row);
                labels.push(selected.map_or(NONE, |at| {
                    assert_eq!(batch.documents[at], number);
                    i64::from(batch.targets[at])
                }));
            }
        }
        for t in ids.len() - from..examples[row].ids.len() {
            ids.push(examples[row].ids[t]);
            positions.push(t);
        }
        labels.resize(ids.len(), NONE);
        ends.push(ids.len());
    }
    assert_eq!(sequence, batch.sequences.documents());
    assert_eq!(batch.rows.len(), batch.targets.len());
    ((ids, positions, labels), ends)
}

/// What a causal loss takes from a table's row: the document, the position predicted from, and the target.
fn predictions(positions: &[usize], labels: &[i64]) -> Vec<(usize, usize, i64)> {
    let mut document = 0;
    let mut found = Vec::new();
    for t in 1..labels.len() {
        document += usize::from(positions[t] == 0);
        if labels[t] != NONE {
            found.push((document, positions[t - 1], labels[t]));
        }
    }
    found
}

const ALL: &[u8] = &[];

#[test]
fn documents_are_laid_out_as_by_the_padding_free_collator() {
    // Packed by length, and laid one behind the other: the order is the same.
    for micro_batch_size in [0, 2] {
        let (found, ends) = table(&[(&[1, 2, 3], ALL), (&[4, 5], ALL)], micro_batch_size);
        assert_eq!(found, (vec![1, 2, 3, 4, 5], vec![0, 1, 2, 0, 1], vec![NONE, 2, 3, NONE, 5]));
        assert_eq!(ends, [0, 3, 5]);
        let (found, _) = table(&[(&[1, 2, 3], &[0, 0, 1]), (&[4, 5], &[1, 1])], micro_batch_size);
        assert_eq!(found, (vec![1, 2, 3, 4, 5], vec![0, 1, 2, 0, 1], vec![NONE, NONE, 3, NONE, 5]));
    }
    // Two packs of two documents each; nothing is learnt from one that is a single token.
    let packs: [(&[u32], &[u8]); 4] =
        [(&[1, 2, 3], ALL), (&[4, 5, 6], ALL), (&[7, 8, 9, 10], ALL), (&[11], ALL)];
    let (found, ends) = table(&packs, 4);
    assert_eq!(
        found,
        (
            vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            vec![0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0],
            vec![NONE, 2, 3, NONE, 5, 6, NONE, 8, 9, 10, NONE],
        )
    );
    assert_eq!(ends, [0, 3, 6, 10, 11]);
    // Positions from lengths alone: 5; 3 and 2; 2 and 2; 3.
    let counted = |lengths: &[usize]| {
        let documents: Vec<Vec<u32>> = lengths.iter().map(|n| (1..=*n as u32).collect()).collect();
        let documents: Vec<(&[u32], &[u8])> = documents.iter().map(|d| (d.as_slice(), ALL)).collect();
        table(&documents, documents.len()).0.1
    };
    assert_eq!(counted(&[5]), [0, 1, 2, 3, 4]);
    assert_eq!(counted(&[3, 2]), [0, 1, 2, 0, 1]);
    assert_eq!(counted(&[2, 2]), [0, 1, 0, 1]);
    assert_eq!(counted(&[3]), [0, 1, 2]);
}

#[test]
fn the_loss_is_of_the_same_predictions_as_with_padding() {
    /// Rows of labels, padded.
    type Rows<'a> = &'a [&'a [i64]];
    let two: [&[u32]; 2] = [&[1, 2, 3], &[4, 5]];
    let cases: [(&[&[u8]], Rows<'_>); 4] = [
        (&[ALL, ALL], &[&[1, 2, 3], &[4, 5, NONE]]),
        (&[&[0, 1, 1], &[0, 1]], &[&[NONE, 2, 3], &[NONE, 5, NONE]]),
        (&[ALL, ALL], &[&[1, 2, 3, NONE], &[4, 5, NONE, NONE]]),
        // Padding-free and padded to a multiple of 4: the padding is a document of its own each.
        (&[ALL, ALL], &[&[NONE, 2, 3, NONE, 5, NONE, NONE, NONE]]),
    ];
    for (masks, rows) in cases {
        let documents: Vec<(&[u32], &[u8])> =
            two.iter().zip(masks).map(|(ids, mask)| (*ids, *mask)).collect();
        let ((_, positions, labels), _) = table(&documents, 0);
        let mut published = Vec::new();
        for (number, labels) in rows.iter().enumerate() {
            let positions: Vec<usize> =
                if rows.len() == 1 { vec![0, 1, 2, 0, 1, 0, 0, 0] } else { (0..labels.len()).collect() };
            published.extend(predictions(&positions, labels).into_iter().map(|(d, p, l)| (number + d, p, l)));
        }
        assert_eq!(predictions(&positions, &labels), published);
    }
    let ((_, positions, labels), _) = table(&[(&[1, 2, 3, 4], ALL)], 0);
    assert_eq!(predictions(&positions, &labels), predictions(&[0, 1, 2, 3], &[1, 2, 3, 4]));
}
