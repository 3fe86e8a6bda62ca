//! What a decoder computes, in floating-point operations for each token: two for each multiplication and addition of the
//! matrix products. Norms, rotations and sums are left out, as everybody does.

use super::{Footprint, Keep};
use crate::adapter::Group;

impl Footprint {
    /// One forward and backward where nothing is computed again, for each token of documents whose tokens see `keys` keys
    /// on average; all tokens count in the loss.
    ///
    /// The frozen weights have no gradient, so a linear costs its forward and its dX. The attention's backward has seven
    /// products where its forward has two.
    pub fn training_flops(&self, keys: f64) -> f64 {
        let head = 4.0 * (self.config.vocab_size * self.config.hidden_size) as f64;
        let Some(first) = self.first_trained() else { return head };
        let layer = |layer: usize| {
            let forward = self.layer_forward(layer, keys);
            if layer < first { forward } else { forward + self.layer_backward(layer, keys, layer > first) }
        };
        head + (0..self.layers()).map(layer).sum::<f64>()
    }

    /// What a block computes again in its backward for each token, if it keeps no more than `keep`.
    pub fn again_flops(&self, layer: usize, keep: Keep, keys: f64) -> f64 {
        if self.first_trained().is_none_or(|first| layer < first) {
            return 0.0;
        }
        let group = |group| self.product(layer, group);
        let down = |group| self.down(layer, group);
        let mut again = 0.0;
        if keep > Keep::All {
            // What the down projection reads, but not what it gives.
            again += group(Group::GateUp) + down(Group::GateUp) + down(Group::Down);
        }
        if keep > Keep::NoMlp {
            again += group(Group::Qkv) + down(Group::Qkv) + self.attention_flops(keys) + down(Group::O);
        }
        if keep > Keep::Residuals {
            again += group(Group::O);
        }
        again
    }

    fn layer_forward(&self, layer: usize, keys: f64) -> f64 {
        let of = |group| self.product(layer, group) + self.down(layer, group);
        Group::ALL.map(of).iter().sum::<f64>() + self.attention_flops(keys)
    }

    fn layer_backward(&self, layer: usize, keys: f64, dx_of_qkv: bool) -> f64 {
        let mut all = 3.5 * self.attention_flops(keys);
        for group in Group::ALL {
            if group != Group::Qkv || dx_of_qkv {
                // dX = [dY dS] [W; A].
                let (outputs, inputs) = self.shape(group);
                all += 2.0 * ((outputs + self.padded(layer, group)) * inputs) as f64;
            }
        }
        let slots = self.layout.slots().iter().filter(|s| s.site.layer == layer);
        // dS and dB of each update, and dA.
        all + slots.map(|s| (s.site.rank * (4 * s.out + 2 * s.input)) as f64).sum::<f64>()
    }

    fn padded(&self, layer: usize, group: Group) -> usize {
        let at = Group::ALL.iter().position(|g| *g == group).unwrap_or(0);
        self.ranks[layer][at]
    }

    /// \[X S\] \[W sB\]ᵀ.
    fn product(&self, layer: usize, group: Group) -> f64 {
        let (outputs, inputs) = self.shape(group);
        2.0 * (outputs * (inputs + self.padded(layer, group))) as f64
    }

    /// S = X Aᵀ.
    fn down(&self, layer: usize, group: Group) -> f64 {
        2.0 * (self.shape(group).1 * self.padded(layer, group)) as f64
    }

    /// Scores and their product with the values, forward.
    fn attention_flops(&self, keys: f64) -> f64 {
        let seen = self.config.sliding_window.map_or(keys, |window| keys.min(window as f64));
        4.0 * seen * self.config.query_size() as f64
    }
}
