//! Weights from a checkpoint, or from chance, into the augmented matrices.

use tunesmith_ops::{FillKey, Kernels, MatMut, RopeTable};

use super::Decoder;
use super::block::Block;
use super::group::LoraGroup;
use crate::adapter::{AdapterLayout, Group};
use crate::error::{Error, Result};
use crate::peft::{self, Linear, LoadedTensor, LoraConfig};
use crate::{Checkpoint, ModelConfig};

/// Where the frozen weights of a [`Decoder`] come from.
#[derive(Debug, Clone, Copy)]
pub enum WeightSource<'a> {
    /// The tensors of a model directory.
    Checkpoint(&'a Checkpoint),
    /// Chance, on the device itself: matrices of symmetric random values, norms of ones. The same seed gives the same
    /// values on every device, up to the rounding to its storage type.
    Random {
        /// Seed of all tensors.
        seed: u64,
        /// Standard deviation of every matrix.
        std: f32,
    },
}

impl<'a> From<&'a Checkpoint> for WeightSource<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self::Checkpoint(checkpoint)
    }
}

/// Brings one tensor after another to where it belongs.
struct Loader<'a, K> {
    k: &'a K,
    source: WeightSource<'a>,
    /// Tensors so far: names the random values of the next.
    tensors: u32,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<K: Kernels> Loader<'_, K> {
    /// A tensor of shape `shape` into its place, which has as many values.
    fn load(&mut self, name: &str, shape: &[usize], out: MatMut<'_, K::Buf>) -> Result<()> {
        let (k, total, progress) = (self.k, self.total, &mut self.progress);
        let done = &mut self.done;
        let mut told = |bytes: usize| {
            *done += bytes as u64;
            progress(*done, total);
        };
        let tensor = self.tensors;
        self.tensors += 1;
        match self.source {
            WeightSource::Checkpoint(checkpoint) => checkpoint.load(name, shape, k, out, &mut told),
            WeightSource::Random { seed, std } => {
                let count = out.rows * out.cols;
                match shape {
                    [_] => k.write(&vec![1.0; count], out)?,
                    _ => k.fill_random(FillKey { seed, tensor }, std, out)?,
                }
                told(count * RANDOM_BYTES);
                Ok(())
            }
        }
    }

    /// A tensor in a buffer of its own.
    fn buffer(&mut self, name: &str, shape: &[usize]) -> Result<K::Buf> {
        let (rows, cols) = match *shape {
            [rows, cols] => (rows, cols),
            _ => (1, shape.iter().product()),
        };
        let mut buf = self.k.zeros(rows * cols)?;
        self.load(name, shape, MatMut::new(&mut buf, rows, cols, cols))?;
        Ok(buf)
    }
}

/// What a random value counts as, in bytes.
const RANDOM_BYTES: usize = 2;

impl<K: Kernels> Decoder<K> {
    /// Loads the base model, with room for the LoRA updates of `lora` (all zero until
    /// [`Decoder::initialize`] or [`Decoder::set_adapter`]).
    ///
    /// `progress` is told the bytes done and of all tensors, as they are stored, several times for a large tensor.
    ///
    /// # Errors
    /// A missing, unexpected, mis-shaped or non-finite tensor, each named; settings of `lora` that match nothing;
    /// not enough memory.
    pub fn load<'a>(
        kernels: K,
        config: ModelConfig,
        weights: impl Into<WeightSource<'a>>,
        lora: Option<&LoraConfig>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let source = weights.into();
        let total = match source {
            WeightSource::Checkpoint(checkpoint) => {
                let shapes = config.tensor_shapes();
                checkpoint.check_names(&shapes)?;
                shapes.iter().map(|(name, shape)| checkpoint.stored_bytes(name, shape)).sum()
            }
            WeightSource::Random { .. } => config.parameter_count() * RANDOM_BYTES as u64,
        };
        let sites = lora.map(|l| l.resolve(config.num_hidden_layers)).transpose()?.unwrap_or_default();
        let layout = AdapterLayout::new(&config, &sites);
        let mut loader = Loader { k: &kernels, source, tensors: 0, done: 0, total, progress };
        let d = config.hidden_size;
        let table_shape = [config.vocab_size, d];
        let embedding = loader.buffer("model.embed_tokens.weight", &table_shape)?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            let norm1 = loader.buffer(&format!("{prefix}.input_layernorm.weight"), &[d])?;
            let mut group = |g: Group| -> Result<LoraGroup<K>> {
                let outputs = g.linears().iter().map(|l| l.shape(&config).0).sum();
                let inputs = g.linears().first().map_or(0, |l| l.shape(&config).1);
                let mut out = LoraGroup::new(loader.k, outputs, inputs, layout.group(layer, g))?;
                let mut row = 0;
                for linear in g.linears() {
                    let (rows, cols) = linear.shape(&config);
                    let name = format!("{}.weight", linear.module_path(layer));
                    loader.load(&name, &[rows, cols], out.weight_mut(row, rows))?;
                    row += rows;
                }
                Ok(out)
            };
            let (qkv, o) = (group(Group::Qkv)?, group(Group::O)?);
            let (gate_up, down) = (group(Group::GateUp)?, group(Group::Down)?);
            let norm2 = loader.buffer(&format!("{prefix}.post_attention_layernorm.weight"), &[d])?;
            blocks.push(Block { norm1, qkv, o, norm2, gate_up, down });
        }
        let norm = loader.buffer("model.norm.weight", &[d])?;
        let tied = config.tie_word_embeddings;
        let head = (!tied).then(|| loader.buffer("lm_head.weight", &table_shape)).transpose()?;
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
