//! Decoding with a key/value cache: prompts in one pass, then a token at a time.

use tunesmith_ops::{Index, Kernels, Mat, MatMut, Sequences};

use super::block::Cx;
use super::{Decoder, Workspace};
use crate::error::{Error, Result};

/// Keys and values of one text, for every block: `[capacity, 2 * kv_heads * head_dim]` each.
#[derive(Debug)]
pub struct KvCache<K: Kernels> {
    layers: Vec<K::Buf>,
    capacity: usize,
    len: usize,
    workspace: Workspace<K>,
    chunk: usize,
    /// `[vocab_size]`: those of the last token.
    logits: K::Buf,
}

impl<K: Kernels> KvCache<K> {
    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets everything after the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl<K: Kernels> Decoder<K> {
    /// A cache for texts of up to `capacity` tokens, prompts read in pieces of up to `chunk` tokens.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn cache(&mut self, capacity: usize, chunk: usize) -> Result<KvCache<K>> {
        self.prepare_positions(capacity);
        let chunk = chunk.clamp(1, capacity.max(1));
        let width = 2 * self.config.key_value_size();
        let layers = (0..self.blocks.len()).map(|_| self.kernels.zeros(capacity * width));
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        let (workspace, logits) =
            (self.evaluation_workspace(chunk)?, self.kernels.zeros(self.config.vocab_size)?);
        Ok(KvCache { layers, capacity, len: 0, workspace, chunk, logits })
    }

    /// Reads `ids` after what is in the cache and returns the logits after the last of them, `[vocab_size]`.
    ///
    /// # Errors
    /// No ids, no room left in the cache, an id outside the vocabulary, or a device fault.
    pub fn decode(&self, cache: &mut KvCache<K>, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(Error::internal("decoding needs at least one token"));
        }
        if cache.len + ids.len() > cache.capacity {
            return Err(Error::CacheFull { tokens: cache.len + ids.len(), capacity: cache.capacity });
        }
        let mut last = 0;
        for piece in ids.chunks(cache.chunk) {
            self.extend(cache, piece)?;
            last = piece.len() - 1;
        }
        let (k, d, vocab) = (&self.kernels, self.config.hidden_size, self.config.vocab_size);
        let ws = &mut cache.workspace;
        let x = Mat::new(&ws.hidden, last + 1, d, d).rows(last..last + 1);
        k.rms_norm(
            x,
            &self.norm,
            self.config.rms_norm_eps as f32,
            MatMut::new(&mut ws.normed, 1, d, d),
            &mut ws.rstd,
        )?;
        let normed = Mat::new(&ws.normed, 1, d, d);
        let out = &mut cache.logits;
        k.gemm(1.0, normed, self.head().t(), 0.0, MatMut::new(out, 1, vocab, vocab))?;
        Ok(k.read(Mat::new(out, 1, vocab, vocab))?)
    }

    /// One piece of text through all blocks; the result is in `hidden`.
    fn extend(&self, cache: &mut KvCache<K>, ids: &[u32]) -> Result<()> {
        let (k, n, w) = (&self.kernels, ids.len(), self.widths());
        let (past, total) = (cache.len, cache.len + n);
        let positions: Index = (past..total).collect();
        let sequences = Sequences::continuing(past, n);
        let cx = Cx {
            k,
            config: &self.config,
            widths: w,
            table: &self.table,
            positions: &positions,
            sequences: &sequences,
            selected: None,
            dropout: None,
            dropout_selected: None,
        };
        let ws = &mut cache.workspace;
        let missing = || Error::internal("a buffer of the cache's workspace is missing");
        let mut attention = ws.scratch.attention.take().ok_or_else(missing)?;
        let mut middle = ws.scratch.middle.take().ok_or_else(missing)?;
        let mut mlp = ws.scratch.mlp.take().ok_or_else(missing)?;
        let table = Mat::new(&self.embedding, self.config.vocab_size, w.d, w.d);
        k.embed(table, ids, MatMut::new(&mut ws.hidden, n, w.d, w.d))?;
        let width = w.q + 2 * w.kv;
        for (block, stored) in self.blocks.iter().zip(&mut cache.layers) {
            let x = &mut ws.tapes[0].input;
            std::mem::swap(x, &mut ws.hidden);
            let scratch = &mut ws.scratch;
            block.forward_qkv(&cx, x, &mut attention, scratch)?;
            let qkv = Mat::new(&attention.qkv, n, width, width);
            let new = MatMut::new(stored, cache.capacity, 2 * w.kv, 2 * w.kv).rows(past..total);
            k.copy(qkv.columns(w.q..width), new)?;
            let stored = Mat::new(&*stored, total, 2 * w.kv, 2 * w.kv);
            let (keys, values) = (stored.columns(0..w.kv), stored.columns(w.kv..2 * w.kv));
            let out = MatMut::new(&mut attention.out, n, w.q, block.o.input_ld());
            k.attention(cx.attention(), qkv.columns(0..w.q), keys, values, out, None)?;
            block.finish_attention(&cx, x, &mut attention, &mut middle, scratch)?;
            block.forward_mlp(&cx, &middle, &mut mlp, Some(&mut ws.hidden), scratch)?;
        }
        (ws.scratch.attention, ws.scratch.middle, ws.scratch.mlp) =
            (Some(attention), Some(middle), Some(mlp));
        cache.len = total;
        Ok(())
    }
}
