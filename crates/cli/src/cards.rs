//! NVIDIA cards that a job can be planned for without having one.

/// A card and its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// The name that its maker gives it, without the maker's.
    pub name: &'static str,
    /// MiB in all, as `nvidia-smi` reports them; drivers differ by a few hundred.
    pub mib: u64,
}

impl Card {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.mib << 20
    }

    /// The card of a name, however it is written: `RTX 4090`, `rtx4090`, `NVIDIA GeForce RTX 4090`.
    ///
    /// # Errors
    /// All names there are.
    pub fn find(name: &str) -> Result<&'static Self, String> {
        let asked = plain(name);
        let same = |asked: &str| {
            let named = |card: &&Self| {
                let name = plain(card.name);
                name == asked || name.strip_prefix("rtx") == Some(asked)
            };
            CARDS.iter().find(named)
        };
        // A card with one size of memory may be named with it.
        same(&asked).or_else(|| same(without_size(&asked)?)).ok_or_else(|| {
            let names: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
            format!("no card of this name is known; known are {}", names.join(", "))
        })
    }
}

/// Letters and digits alone, small, without the words that are the same on all cards.
fn plain(name: &str) -> String {
    let mut text: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    text.make_ascii_lowercase();
    for word in ["nvidia", "geforce"] {
        text = text.strip_prefix(word).map_or(text.clone(), str::to_owned);
    }
    text
}

/// `rtx409024gb` without its size in GB, which has two digits or three.
fn without_size(name: &str) -> Option<&str> {
    let name = name.strip_suffix("gb")?;
    // A model's number ends where the size begins; sizes do not begin with 0.
    [2, 3].into_iter().find_map(|digits| {
        let (model, size) = name.split_at_checked(name.len().checked_sub(digits)?)?;
        let is_size = size.chars().all(|c| c.is_ascii_digit()) && !size.starts_with('0');
        (is_size && CARDS.iter().any(|card| plain(card.name).ends_with(model) && !model.is_empty()))
            .then_some(model)
    })
}

const fn card(name: &'static str, mib: u64) -> Card {
    Card { name, mib }
}

/// Every card that is known, the smallest of each kind first.
pub const CARDS: &[Card] = &[
    card("RTX 3060 12GB", 12_288),
    card("RTX 3090", 24_576),
    card("RTX 4060 Ti 16GB", 16_380),
    card("RTX 4080", 16_376),
    card("RTX 4090", 24_564),
    card("RTX 5090", 32_607),
    card("RTX A5000", 24_564),
    card("RTX A6000", 49_140),
    card("RTX 6000 Ada", 49_140),
    card("RTX PRO 6000", 97_887),
    card("L4", 23_034),
    card("L40S", 46_068),
    card("A10", 23_028),
    card("A100 40GB", 40_960),
    card("A100 80GB", 81_920),
    card("H100 80GB", 81_559),
    card("H100 NVL", 95_830),
    card("H200", 143_771),
    card("B200", 183_359),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_however_its_name_is_written() {
        for (written, name) in [
            ("rtx4090", "RTX 4090"),
            ("4090", "RTX 4090"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("RTX 4090 24GB", "RTX 4090"),
            ("A100-80GB", "A100 80GB"),
            ("a100 40gb", "A100 40GB"),
            ("NVIDIA RTX A6000", "RTX A6000"),
            ("h200", "H200"),
            ("H200 141GB", "H200"),
            ("H100-NVL", "H100 NVL"),
        ] {
            assert_eq!(Card::find(written).map(|card| card.name), Ok(name), "{written}");
        }
        for unknown in ["", "A100", "RTX 4090 Ti", "GTX 1080", "gb"] {
            let error = Card::find(unknown).unwrap_err();
            assert!(
                error.contains("known are RTX 3060 12GB, ") && error.ends_with("B200"),
                "{unknown}: {error}"
            );
        }
        for card in CARDS {
            assert_eq!(Card::find(card.name), Ok(card));
            assert!(card.mib > 10_000 && card.bytes() == card.mib * 1024 * 1024);
        }
    }
}
