//! The terminal: taken over as a whole, given back whatever happens.
//!
//! A panic gives it back only if it is the dashboard that dies. The engine's tasks panic on other
//! threads, or on this one between two polls of the dashboard; the screen is then still in use, so
//! their messages are kept and printed when it is left.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Stdout, Write, stdout};
use std::panic::PanicHookInfo;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crossterm::cursor::Show;
use crossterm::terminal::{
    BeginSynchronizedUpdate, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, SetTitle, disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Position, Rect, Size};
use ratatui::{Frame, Terminal};

/// True while raw mode and the alternate screen are ours.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Panics of others that the screen had no room for.
static KEPT: Mutex<Vec<String>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

thread_local! {
    static POLLING_UI: Cell<bool> = const { Cell::new(false) };
}

/// Titles are pushed to and popped from the terminal's own stack (xterm's CSI 22 t and 23 t).
const PUSH_TITLE: &[u8] = b"\x1b[22;0t";
const POP_TITLE: &[u8] = b"\x1b[23;0t";

/// Runs the dashboard's future, marking what panics inside it as the dashboard's own.
pub async fn as_ui<T>(future: impl Future<Output = T>) -> T {
    struct Mark(bool);
    impl Drop for Mark {
        fn drop(&mut self) {
            POLLING_UI.set(self.0);
        }
    }
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        let _mark = Mark(POLLING_UI.replace(true));
        future.as_mut().poll(cx)
    })
    .await
}

/// Holds the terminal until dropped.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    title: String,
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").field("title", &self.title).finish_non_exhaustive()
    }
}

impl Screen {
    pub fn enter(coloured: bool) -> io::Result<Self> {
        HOOK.call_once(install_hook);
        if coloured {
            // The theme has decided; the library must not decide again (see `theme`).
            crossterm::style::force_color_output(true);
        }
        take()?;
        // From here on a failure is undone by the drop.
        let guard = Guard;
        let terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        std::mem::forget(guard);
        Ok(Self { terminal, title: String::new() })
    }

    pub fn size(&self) -> io::Result<Size> {
        self.terminal.size()
    }

    pub fn draw(&mut self, view: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        self.terminal.draw(view)?;
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)
    }

    /// Forgets what is on the screen, so that the next draw writes every cell.
    pub fn clear(&mut self) -> io::Result<()> {
        // Not `Terminal::clear`: that asks for the cursor's place and waits seconds for a terminal that does not answer.
        let area = Rect::from((Position::ORIGIN, self.terminal.size()?));
        self.terminal.resize(area)
    }

    pub fn set_title(&mut self, title: &str) -> io::Result<()> {
        if self.title != title {
            title.clone_into(&mut self.title);
            execute!(self.terminal.backend_mut(), SetTitle(title))?;
        }
        Ok(())
    }

    /// Puts text on the clipboard of the terminal in front of the user, however far away that is (OSC 52).
    pub fn copy(&mut self, text: &str) -> io::Result<()> {
        let out = self.terminal.backend_mut();
        write!(out, "\x1b]52;c;{}\x07", base64(text.as_bytes()))?;
        out.flush()
    }

    /// Gives the terminal back, stops the process group as the shell expects, and takes the terminal again once
    /// it is continued.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        // A child sends the signal because doing it ourselves takes unsafe code; it is stopped with us.
        let sent = std::process::Command::new("kill").args(["-s", "TSTP", "0"]).status();
        take()?;
        self.title.clear();
        self.clear()?;
        sent.map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Undoes [`take`] if setting up fails after it.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    ACTIVE.store(true, Ordering::SeqCst);
    let mut out = stdout();
    out.write_all(PUSH_TITLE)?;
    execute!(out, EnterAlternateScreen, DisableLineWrap).inspect_err(|_| give_back())
}

/// Idempotent, and deaf to errors: it runs when the terminal may be gone already.
fn give_back() {
    if !ACTIVE.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut out = stdout();
    let _ = queue!(out, EndSynchronizedUpdate, EnableLineWrap, LeaveAlternateScreen, Show);
    let _ = out.write_all(POP_TITLE);
    let _ = out.flush();
    let _ = disable_raw_mode();
    let kept = std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner));
    let mut err = io::stderr();
    for message in kept {
        let _ = writeln!(err, "{message}");
    }
}

fn install_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let fatal = POLLING_UI.get() || cfg!(panic = "abort");
        if fatal {
            give_back();
        }
        if ACTIVE.load(Ordering::SeqCst) {
            keep(info);
        } else {
            previous(info);
        }
    }));
}

fn keep(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let message = format!("thread '{}' {info}", thread.name().unwrap_or("unnamed"));
    tracing::error!("{message}");
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(message);
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |acc, byte| acc << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = (group >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= chunk.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648s() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ];
        for (plain, coded) in pairs {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[tokio::test]
    async fn only_the_dashboards_own_future_is_marked() {
        let other = tokio::spawn(async { POLLING_UI.get() });
        as_ui(async {
            assert!(POLLING_UI.get());
            tokio::task::yield_now().await;
            assert!(POLLING_UI.get());
            assert!(!other.await.unwrap());
        })
        .await;
        assert!(!POLLING_UI.get());
    }
}
