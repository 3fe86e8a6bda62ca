//! Weights from a checkpoint into the augmented matrices.

use tunesmith_ops::{Kernels, MatMut, RopeTable};

use super::Decoder;
use super::block::Block;
use super::group::LoraGroup;
use crate::adapter::{AdapterLayout, Group};
use crate::error::{Error, Result};
use crate::peft::{self, Linear, LoadedTensor, LoraConfig};
use crate::{Checkpoint, ModelConfig};

impl<K: Kernels> Decoder<K> {
    /// Loads the base model, with room for the LoRA updates of `lora` (all zero until
    /// [`Decoder::initialize`] or [`Decoder::set_adapter`]).
    ///
    /// `progress` is told the number of tensors read and of all tensors.
    ///
    /// # Errors
    /// A missing, unexpected, mis-shaped or non-finite tensor, each named; settings of `lora` that match nothing;
    /// not enough memory.
    pub fn load(
        kernels: K,
        config: ModelConfig,
        checkpoint: &Checkpoint,
        lora: Option<&LoraConfig>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let shapes = config.tensor_shapes();
        checkpoint.check_names(&shapes)?;
        let sites = lora.map(|l| l.resolve(config.num_hidden_layers)).transpose()?.unwrap_or_default();
        let layout = AdapterLayout::new(&config, &sites);
        let k = &kernels;
        let mut done = 0;
        let mut read = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
            let values = checkpoint.read_f32(name, shape)?;
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::NotFinite { name: name.to_string(), index: at });
            }
            done += 1;
            progress(done, shapes.len());
            Ok(values)
        };
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let table_shape = [vocab, d];
        let embedding = upload(k, &read("model.embed_tokens.weight", &table_shape)?)?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            let norm1 = upload(k, &read(&format!("{prefix}.input_layernorm.weight"), &[d])?)?;
            let mut group = |g: Group| -> Result<LoraGroup<K>> {
                let outputs = g.linears().iter().map(|l| l.shape(&config).0).sum();
                let inputs = g.linears().first().map_or(0, |l| l.shape(&config).1);
                let mut out = LoraGroup::new(k, outputs, inputs, layout.group(layer, g))?;
                let mut row = 0;
                for linear in g.linears() {
                    let (rows, cols) = linear.shape(&config);
                    let name = format!("{}.weight", linear.module_path(layer));
                    out.write_weight(k, row, rows, &read(&name, &[rows, cols])?)?;
                    row += rows;
                }
                Ok(out)
            };
            let (qkv, o) = (group(Group::Qkv)?, group(Group::O)?);
            let (gate_up, down) = (group(Group::GateUp)?, group(Group::Down)?);
            let norm2 = upload(k, &read(&format!("{prefix}.post_attention_layernorm.weight"), &[d])?)?;
            blocks.push(Block { norm1, qkv, o, norm2, gate_up, down });
        }
        let norm = upload(k, &read("model.norm.weight", &[d])?)?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            Some(upload(k, &read("lm_head.weight", &table_shape)?)?)
        };
        let table = RopeTable::new(&config.rope.inverse_frequencies(config.head_dim), 0);
        let parameters = kernels.zeros_full(layout.len())?;
        let copies = super::copies(&kernels, &blocks, layout.len())?;
        Ok(Self { kernels, config, embedding, blocks, norm, head, table, layout, parameters, copies })
    }

    /// Fresh LoRA parameters: A random from the seed, B zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn initialize(&mut self, seed: u64) -> Result<()> {
        let values = self.layout.initial(seed);
        self.set_parameters(&values)
    }

    /// Takes over a loaded adapter and returns how many tensors were applied: all of them, or it is an error.
    ///
    /// # Errors
    /// A tensor missing, left over or of another shape (an adapter for another base model).
    pub fn set_adapter(&mut self, dir: &std::path::Path, tensors: &[LoadedTensor]) -> Result<usize> {
        let expected = self.layout.expected();
        peft::check(dir, &expected, tensors)?;
        let values = self.layout.flatten(tensors);
        self.set_parameters(&values)?;
        Ok(expected.len())
    }

    /// Folds the adapter into the frozen weights: W += s B A. The LoRA parameters become zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn merge_adapter(&mut self) -> Result<()> {
        for block in &mut self.blocks {
            for group in block.groups_mut() {
                group.merge(&self.kernels)?;
            }
        }
        Ok(self.kernels.clear_full(&mut self.parameters)?)
    }

    /// The frozen weight of one linear as it is now, `[out, in]`.
    ///
    /// # Errors
    /// If there is no such block, or the device fails.
    pub fn linear_weight(&self, layer: usize, linear: Linear) -> Result<Vec<f32>> {
        let missing = || Error::MissingTensor {
            name: format!("{}.weight", linear.module_path(layer)),
            path: std::path::PathBuf::new(),
        };
        let block = self.blocks.get(layer).ok_or_else(missing)?;
        for (group, weights) in Group::ALL.into_iter().zip(block.groups()) {
            let mut row = 0;
            for &l in group.linears() {
                let out = l.shape(&self.config).0;
                if l == linear {
                    return weights.read_weight(&self.kernels, row, out);
                }
                row += out;
            }
        }
        Err(missing())
    }
}

fn upload<K: Kernels>(k: &K, values: &[f32]) -> Result<K::Buf> {
    let mut buf = k.zeros(values.len())?;
    k.write(values, MatMut::new(&mut buf, 1, values.len(), values.len()))?;
    Ok(buf)
}
