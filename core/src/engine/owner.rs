//! Who this client is, to servers: a random id kept in the state directory, and the repository's path.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::model::{ContentId, HashKind};

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep this client's id in {path}")]
pub struct OwnerError {
    path: PathBuf,
    source: io::Error,
}

/// This client's id, made on first use: 32 hexadecimal digits.
pub fn owner_id(state_dir: &Path) -> Result<String, OwnerError> {
    let path = state_dir.join("owner");
    read_or_make(state_dir, &path).map_err(|source| OwnerError { path, source })
}

fn read_or_make(state_dir: &Path, path: &Path) -> io::Result<String> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let id = format!("{:032x}", fastrand::u128(..));
            file.write_all(id.as_bytes())?;
            Ok(id)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let id = fs::read_to_string(path)?;
            match id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
                true => Ok(id),
                false => Err(io::Error::other("it does not hold 32 hexadecimal digits; remove it")),
            }
        }
        Err(e) => Err(e),
    }
}

/// Sixteen hexadecimal digits that stand for the repository: its path, not told to servers in clear.
pub fn of_path(workdir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let id = ContentId::of(HashKind::Sha1, workdir.as_os_str().as_bytes());
    id.to_string()[..16].to_owned()
}
