//! The `url` of a server: `embedded:DIR`, `http://HOST:PORT` or `unix:PATH` so far.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ServerUrl;
use super::problem::quote;

/// The port of `gitsync-server serve`.
pub const DEFAULT_PORT: u16 = 7420;

const SCHEMES: [&str; 5] = ["embedded:", "http://", "https://", "unix:", "ssh://"];

/// Why text is not a server's url: what is wrong, and the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UrlError {
    pub message: String,
    pub hint: String,
    pub allowed: Vec<String>,
}

impl UrlError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), allowed: Vec::new() }
    }
}

/// A url read, before its path is resolved against the config file's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RawUrl<'a> {
    Embedded(&'a str),
    Unix(&'a str),
    Done(ServerUrl),
}

pub(super) fn parse(text: &str) -> Result<RawUrl<'_>, UrlError> {
    let scheme = SCHEMES
        .into_iter()
        .find(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let later =
        |what: &str, hint: &str| Err(UrlError::new(format!("{what} urls are not in this version"), hint));
    match scheme {
        Some("embedded:") => embedded(&text["embedded:".len()..]),
        Some("http://") => http(&text["http://".len()..]).map(RawUrl::Done),
        Some("https://") => {
            later("https", "tunnel to the server with `ssh -L` and write `http://localhost:PORT`")
        }
        Some("unix:") => unix(&text["unix:".len()..]),
        Some("ssh://") => {
            later("ssh", "tunnel with `ssh -L 7420:localhost:7420 HOST` and write `http://localhost:7420`")
        }
        _ => {
            let mut error = UrlError::new(
                format!("{} has no scheme that is known", quote(text)),
                "write a directory as `embedded:DIR`, or a server on this machine as `http://localhost:7420`",
            );
            error.allowed = SCHEMES.map(str::to_owned).into();
            Err(error)
        }
    }
}

fn embedded(dir: &str) -> Result<RawUrl<'_>, UrlError> {
    if dir.is_empty() {
        return Err(UrlError::new("the directory is missing", "write it after the colon: `embedded:DIR`"));
    }
    if dir.starts_with("//") {
        let hint = format!("write `embedded:/{}`", dir.trim_start_matches('/'));
        return Err(UrlError::new("`embedded:` takes a directory, not `//`", hint));
    }
    Ok(RawUrl::Embedded(dir))
}

fn unix(path: &str) -> Result<RawUrl<'_>, UrlError> {
    const FORM: &str = "write the path of the server's socket after the colon: `unix:/path/to/server.sock`";
    if path.is_empty() || path.ends_with('/') {
        return Err(UrlError::new("the path of the socket is missing", FORM));
    }
    if path.starts_with("//") {
        let hint = format!("write `unix:/{}`", path.trim_start_matches('/'));
        return Err(UrlError::new("`unix:` takes a path, not `//`", hint));
    }
    Ok(RawUrl::Unix(path))
}

fn http(rest: &str) -> Result<ServerUrl, UrlError> {
    const FORM: &str = "write `http://HOST:PORT`, for example `http://localhost:7420`";
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !matches!(path, "" | "/") {
        return Err(UrlError::new(
            format!("nothing may follow the port, but there is {}", quote(path)),
            FORM,
        ));
    }
    if authority.contains('@') {
        return Err(UrlError::new("a url holds no user name or password", FORM));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let Some((host, after)) = rest.split_once(']') else {
                return Err(UrlError::new("the `]` of the address is missing", FORM));
            };
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(UrlError::new(format!("{} is no port", quote(after)), FORM)),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err(UrlError::new("the host is missing", FORM));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return Err(UrlError::new(format!("{} is no port", quote(port)), FORM)),
        },
    };
    let bracketed = authority.starts_with('[');
    if !is_loopback(host, bracketed) {
        return Err(UrlError::new(
            format!("{} is not a loopback address, and http is not encrypted", quote(host)),
            format!(
                "for now, tunnel with `ssh -L {port}:localhost:{port} HOST` and write `http://localhost:{port}`"
            ),
        ));
    }
    Ok(ServerUrl::Http { host: host.to_ascii_lowercase(), port })
}

fn is_loopback(host: &str, bracketed: bool) -> bool {
    if bracketed {
        return host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback());
    }
    host.eq_ignore_ascii_case("localhost") || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood() {
        let http = |host: &str, port| RawUrl::Done(ServerUrl::Http { host: host.into(), port });
        for (text, wanted) in [
            ("embedded:a/b", RawUrl::Embedded("a/b")),
            ("embedded:/abs", RawUrl::Embedded("/abs")),
            ("EMBEDDED:~/x", RawUrl::Embedded("~/x")),
            ("unix:/run/x.sock", RawUrl::Unix("/run/x.sock")),
            ("unix:run/x", RawUrl::Unix("run/x")),
            ("Unix:~/x", RawUrl::Unix("~/x")),
            ("http://localhost", http("localhost", 7420)),
            ("http://LocalHost:1/", http("localhost", 1)),
            ("http://127.0.0.1:7421", http("127.0.0.1", 7421)),
            ("http://127.9.9.9", http("127.9.9.9", 7420)),
            ("http://[::1]:80", http("::1", 80)),
            ("http://[::1]", http("::1", 7420)),
        ] {
            assert_eq!(parse(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_not_says_why_and_what_next() {
        for (text, message, hint) in [
            ("embedded:", "directory is missing", "embedded:DIR"),
            ("embedded:///abs", "not `//`", "embedded:/abs"),
            ("http://", "host is missing", "http://HOST:PORT"),
            ("http://localhost:x", "`x` is no port", "http://HOST:PORT"),
            ("http://localhost:0", "`0` is no port", "http://HOST:PORT"),
            ("http://localhost:+80", "`+80` is no port", "http://HOST:PORT"),
            ("http://localhost:70000", "`70000` is no port", "http://HOST:PORT"),
            ("http://u:p@localhost", "no user name", "http://HOST:PORT"),
            ("http://localhost/x", "`/x`", "http://HOST:PORT"),
            ("http://[::1", "`]`", "http://HOST:PORT"),
            ("http://[127.0.0.1]", "not a loopback", "ssh -L"),
            ("http://gpu.example.net:9", "`gpu.example.net` is not a loopback", "ssh -L 9:localhost:9"),
            ("http://0.0.0.0", "not a loopback", "ssh -L"),
            ("http://localhost.example.net", "not a loopback", "ssh -L"),
            ("https://gpu", "not in this version", "ssh -L"),
            ("unix:", "path of the socket is missing", "unix:/path"),
            ("unix:/run/", "path of the socket is missing", "unix:/path"),
            ("unix:///run/x", "not `//`", "unix:/run/x"),
            ("ssh://gpu", "not in this version", "ssh -L"),
            ("gpu:7420", "no scheme that is known", "embedded:DIR"),
            ("ftp://x", "no scheme that is known", "http://localhost:7420"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(message), "{text}: {error:?}");
            assert!(error.hint.contains(hint), "{text}: {error:?}");
        }
    }
}
