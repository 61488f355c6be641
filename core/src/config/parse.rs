//! From TOML text to [`Config`].
use super::*;

/// Everything wrong with one configuration file.
#[derive(Debug)]
pub struct ConfigErrors {
    pub problems: Vec<Problem>,
}
/// One thing wrong.
#[derive(Debug)]
pub struct Problem {
    pub message: String,
}

pub fn load(file: &Path) -> Result<Config, ConfigErrors> {
    let _ = file;
    Err(ConfigErrors { problems: vec![] })
}
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    let _ = (text, file);
    Err(ConfigErrors { problems: vec![] })
}
