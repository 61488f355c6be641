//! Which remotes a repository has, in a form in which two clones of one project agree.
//!
//! Servers read their clones with the same function, so that both sides compare like with like. Credentials never
//! leave this room.

use gix::bstr::ByteSlice;
use gix::remote::Direction;
use gix::url::Scheme;

use crate::wire::{REMOTE_BYTES, REMOTES};

/// Normalised fetch URLs of the configured remotes, sorted, each once: at most [`REMOTES`] of at most
/// [`REMOTE_BYTES`] bytes. A remote without a URL that says where it is has no place here.
pub fn remotes_of(repo: &gix::Repository) -> Vec<String> {
    let mut urls: Vec<String> = repo
        .remote_names()
        .into_iter()
        .filter_map(|name| repo.find_remote(name.as_bstr()).ok())
        .filter_map(|remote| remote.url(Direction::Fetch).and_then(normalise))
        .filter(|url| url.len() <= REMOTE_BYTES)
        .collect();
    urls.sort();
    urls.dedup();
    urls.truncate(REMOTES);
    urls
}

/// [`remotes_of`], for one URL as git configuration has it; `None` if it names no place.
pub fn normalised(url: &str) -> Option<String> {
    gix::url::parse(url.as_bytes().as_bstr()).ok().as_ref().and_then(normalise)
}

/// `host/path` without scheme, user, port, query, trailing slash or `.git`, so that the ssh and the https form of one
/// remote are equal. `None` for a helper's address: it can hold anything, a password too.
fn normalise(url: &gix::Url) -> Option<String> {
    if matches!(url.scheme, Scheme::Ext | Scheme::Helper(_)) {
        return None;
    }
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    let path = url.path.to_str_lossy();
    let path = match url.scheme {
        Scheme::Http | Scheme::Https => path.split(['?', '#']).next().unwrap_or_default(),
        _ => &path,
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
    Some(if host.is_empty() { format!("/{path}") } else { format!("{host}/{path}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_one_remote_are_equal() {
        let same = [
            "https://example.com/team/app.git",
            "https://user:secret@example.com/team/app",
            "https://example.com:8443/team/app.git?token=secret",
            "git@example.com:team/app.git",
            "ssh://git@Example.com/team/app/",
            "ssh://git@example.com:2222/team/app.git/",
        ];
        for url in same {
            assert_eq!(normalised(url).as_deref(), Some("example.com/team/app"), "{url}");
        }
        assert_eq!(normalised("/srv/git/app.git").as_deref(), Some("/srv/git/app"));
        assert_eq!(normalised("file:///srv/git/app/.git").as_deref(), Some("/srv/git/app"));
    }

    #[test]
    fn nothing_secret_is_left() {
        for url in [
            "https://user:secret@example.com/app",
            "https://secret@example.com/app#secret",
            "http://user:p%40secret@example.com:80/app?private_token=secret",
            "ssh://user:secret@example.com/app",
            "persistent-https://user:secret@example.com/app",
            "ext::sh -c secret",
            "ext://secret/app",
            "helper::https://user:secret@example.com/app",
        ] {
            let normal = normalised(url);
            assert!(normal.as_ref().is_none_or(|text| !text.contains("secret")), "{url}: {normal:?}");
        }
    }
}
