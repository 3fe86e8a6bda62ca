//! From logits to a token.

use tunesmith_ops::Philox;

use crate::Error;

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; above, logits are divided by it before the softmax.
    pub temperature: f64,
    /// Only the most likely tokens whose probabilities first add up to this are drawn from; 1 draws from all.
    pub top_p: f64,
    /// Seed of the draw: the same seed, prompt and model give the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A temperature below 0 or not finite; a `top_p` that is not above 0 and at most 1.
    pub fn check(&self) -> Result<(), Error> {
        let t = self.temperature;
        if !(t.is_finite() && t >= 0.0) {
            return Err(Error::Setting { name: "temperature", value: t.to_string(), allowed: "0 or above" });
        }
        let p = self.top_p;
        if !(p > 0.0 && p <= 1.0) {
            return Err(Error::Setting {
                name: "top_p",
                value: p.to_string(),
                allowed: "above 0 and at most 1",
            });
        }
        Ok(())
    }

    /// Chooses the token after `tokens` tokens of prompt and reply from `logits` `[vocab_size]`.
    ///
    /// # Errors
    /// If a logit is NaN or all are infinite.
    pub fn choose(&self, logits: &[f32], tokens: usize) -> Result<u32, Error> {
        let broken = Error::NotFinite { tokens };
        if logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(broken);
        }
        // The first of equals, as torch.argmax on the CPU.
        let mut best = 0;
        for (i, &l) in logits.iter().enumerate() {
            if l > logits[best] {
                best = i;
            }
        }
        let max = logits.get(best).copied().unwrap_or(f32::NEG_INFINITY);
        if max == f32::NEG_INFINITY {
            return Err(broken);
        }
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }
        let weight = |l: f32| (f64::from(l - max) / self.temperature).exp();
        let mut candidates: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(i, &l)| (i as u32, weight(l))).filter(|c| c.1 > 0.0).collect();
        let mut total: f64 = candidates.iter().map(|c| c.1).sum();
        if self.top_p < 1.0 {
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let (mut sum, mut keep) = (0.0, 0);
            while keep < candidates.len() && sum < self.top_p * total {
                sum += candidates[keep].1;
                keep += 1;
            }
            candidates.truncate(keep.max(1));
            total = candidates.iter().map(|c| c.1).sum();
        }
        let [a, b, ..] = Philox::new(self.seed, 0x5A3E).words([tokens as u32, 0, 0, 0]);
        let unit = (u64::from(a) << 32 | u64::from(b)) as f64 / 2f64.powi(64);
        let mut rest = unit * total;
        for &(id, w) in &candidates {
            if rest < w {
                return Ok(id);
            }
            rest -= w;
        }
        Ok(candidates.last().map_or(best as u32, |c| c.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0f64; logits.len()];
        for tokens in 0..20_000 {
            counts[sampling.choose(logits, tokens).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let greedy = Sampling::default();
        assert_eq!(greedy.choose(&[0.0, 3.0, 3.0, -1.0], 0).unwrap(), 1);
        assert_eq!(greedy.choose(&[f32::NEG_INFINITY, -5.0], 0).unwrap(), 1);
    }

    #[test]
    fn sampling_follows_the_softmax_at_its_temperature() {
        let logits = [1.0f32, 2.0, 0.0];
        for temperature in [0.5, 1.0, 2.0] {
            let got = frequencies(Sampling { temperature, top_p: 1.0, seed: 9 }, &logits);
            let e: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
            let sum: f64 = e.iter().sum();
            assert!(got.iter().zip(&e).all(|(g, e)| (g - e / sum).abs() < 0.015), "{got:?}");
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_reach_it() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let got = frequencies(Sampling { temperature: 1.0, top_p: 0.7, seed: 1 }, &logits);
        assert!((got[0] - 0.625).abs() < 0.015 && (got[1] - 0.375).abs() < 0.015);
        assert_eq!((got[2], got[3]), (0.0, 0.0));
        let got = frequencies(Sampling { temperature: 1.0, top_p: 1e-9, seed: 1 }, &logits);
        assert!((got[0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn broken_logits_and_settings_are_errors() {
        let any = Sampling { temperature: 1.0, top_p: 0.9, seed: 0 };
        assert!(matches!(any.choose(&[0.0, f32::NAN], 4), Err(Error::NotFinite { tokens: 4 })));
        assert!(any.choose(&[f32::NEG_INFINITY; 3], 0).is_err());
        assert!(any.choose(&[f32::INFINITY, 0.0], 0).is_err());
        for (temperature, top_p) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, f64::NAN)] {
            assert!(Sampling { temperature, top_p, seed: 0 }.check().is_err());
        }
    }
}
