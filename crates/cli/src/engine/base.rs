//! The base model: found, read, with its tokenizer.

use std::path::PathBuf;

use tunesmith_data::{Encoder, Now, TemplateChoice, TemplateHelper};
use tunesmith_model::hub::{self, HubOptions};
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{Checkpoint, Decoder, ModelConfig};
use tunesmith_ops::Kernels;

use super::Source;
use crate::error::CliError;
use crate::program;
use crate::progress::Progress;

/// The command that [`tunesmith_data::serve_templates`] is behind.
pub(crate) const TEMPLATE_HELPER: &str = "template-helper";

/// A base model whose files are here and make sense; its weights are not read yet.
#[derive(Debug)]
pub(super) struct Base {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// Its sizes.
    pub(super) config: ModelConfig,
    /// Tokenizer, chat template, stop tokens.
    pub(super) encoder: Encoder,
}

impl Base {
    /// Finds the model, downloading it if it must, and reads everything small.
    pub(super) fn open(
        source: &Source,
        template: TemplateChoice,
        progress: &mut Progress,
    ) -> Result<Self, CliError> {
        Self::open_part(source, template, progress, false)
    }

    /// As [`Base::open`]; the weights need not be there, and are not downloaded.
    pub(super) fn open_without_weights(
        source: &Source,
        template: TemplateChoice,
        progress: &mut Progress,
    ) -> Result<Self, CliError> {
        Self::open_part(source, template, progress, true)
    }

    fn open_part(
        source: &Source,
        template: TemplateChoice,
        progress: &mut Progress,
        without_weights: bool,
    ) -> Result<Self, CliError> {
        let dir = match source {
            Source::Dir(dir) => dir.clone(),
            Source::Repo { id, revision, offline } => {
                let from_env = HubOptions::from_env();
                let offline = *offline || from_env.offline;
                let options = HubOptions { revision: revision.clone(), offline, without_weights, ..from_env };
                hub::resolve(id, &options, &mut |d| progress.download(d.file, d.done, d.total))?
            }
        };
        let config = ModelConfig::from_dir(&dir)?;
        let encoder = Encoder::from_dir(&dir, template, &config.eos_token_ids, Now::utc())?;
        let encoder = encoder.with_template_helper(&template_helper())?;
        encoder.tokenizer().check_vocab_size(config.vocab_size)?;
        Ok(Self { dir, config, encoder })
    }

    /// Longest row in tokens: what is `asked` for under this name, within what the model was made for.
    ///
    /// # Errors
    /// More than that.
    pub(super) fn sequence_limit(&self, asked: Option<usize>, name: &str) -> Result<usize, CliError> {
        let context = self.config.max_position_embeddings;
        match asked {
            Some(asked) if asked > context => Err(CliError::Input {
                code: "invalid_config",
                message: format!("{name} is {asked}, but the base model's context ends at {context} tokens"),
                hint: None,
            }),
            asked => Ok(asked.unwrap_or(context)),
        }
    }

    /// Reads the weights onto a device.
    pub(super) fn load<K: Kernels>(
        &self,
        kernels: K,
        lora: Option<&LoraConfig>,
        progress: &mut Progress,
    ) -> Result<Decoder<K>, CliError> {
        let checkpoint = Checkpoint::open(&self.dir)?;
        let mut show = |done, total| progress.loading(done, total);
        Ok(Decoder::load(kernels, self.config.clone(), &checkpoint, lora, &mut show)?)
    }
}

/// This program, told to run templates and nothing else.
fn template_helper() -> TemplateHelper {
    // One that is not to be found cannot be started either, which is said then.
    let program = program::own().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    TemplateHelper { program, args: vec![TEMPLATE_HELPER.into()] }
}
