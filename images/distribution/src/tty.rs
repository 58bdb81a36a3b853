//! Progress on a terminal: one line per layer, redrawn in place.

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use amphora_spec::Reference;

use crate::progress::{closing, headline};
use crate::{Progress, PullEvent, Pulled};

/// Least time between two drawings of byte counts.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Widest bar, brackets not counted.
const MAX_BAR_CELLS: usize = 50;
/// Narrowest bar; a terminal without room for it gets numbers only.
const MIN_BAR_CELLS: usize = 10;
/// Cells of a line beside the bar: id, state, brackets, byte counts.
const OTHER_CELLS: usize = 50;

/// Draws bars on a terminal by moving the cursor.
pub struct TtyProgress<W> {
    columns: usize,
    rows: usize,
    screen: Mutex<Screen<W>>,
}

struct Screen<W> {
    out: W,
    lines: Vec<Line>,
    drawn: Option<Instant>,
}

struct Line {
    id: String,
    event: PullEvent,
    /// The event is not on the screen yet.
    stale: bool,
}

impl<W: Write + Send> TtyProgress<W> {
    /// Makes a renderer for a terminal of the given size. Errors of `out` are ignored: a terminal
    /// that has gone away must not end the pull.
    pub const fn new(out: W, columns: u16, rows: u16) -> Self {
        Self {
            columns: columns as usize,
            rows: rows as usize,
            screen: Mutex::new(Screen {
                out,
                lines: Vec::new(),
                drawn: None,
            }),
        }
    }

    /// Gives the output back.
    pub fn into_inner(self) -> W {
        self.screen
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .out
    }

    fn with(&self, act: impl FnOnce(&mut Screen<W>)) {
        act(&mut self.screen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn write(screen: &mut Screen<W>, text: &str) {
        drop(
            screen
                .out
                .write_all(text.as_bytes())
                .and_then(|()| screen.out.flush()),
        );
    }

    /// Redraws the lines that changed and are still on the screen.
    fn redraw(&self, screen: &mut Screen<W>) {
        let mut text = String::new();
        let count = screen.lines.len();
        for (index, line) in screen
            .lines
            .iter_mut()
            .enumerate()
            .filter(|(_, line)| line.stale)
        {
            line.stale = false;
            let up = count - index;
            if up < self.rows {
                let content = render(&line.id, &line.event, self.columns);
                text.push_str(&format!("\x1b[{up}A\r\x1b[2K{content}\r\x1b[{up}B"));
            }
        }
        if !text.is_empty() {
            Self::write(screen, &text);
        }
    }
}

impl<W: Write + Send> Progress for TtyProgress<W> {
    fn started(&self, reference: &Reference) {
        self.with(|screen| Self::write(screen, &format!("{}\n", headline(reference))));
    }

    fn event(&self, layer: &str, event: PullEvent) {
        self.with(|screen| {
            match screen.lines.iter_mut().find(|line| line.id == layer) {
                Some(line) => {
                    line.event = event;
                    line.stale = true;
                }
                None => {
                    let content = render(layer, &event, self.columns);
                    screen.lines.push(Line {
                        id: layer.to_owned(),
                        event,
                        stale: false,
                    });
                    Self::write(screen, &format!("{content}\r\n"));
                    return;
                }
            }
            let now = Instant::now();
            let recent = |at: Instant| now.duration_since(at) < REDRAW_INTERVAL;
            if event.bytes().is_some() && screen.drawn.is_some_and(recent) {
                return;
            }
            if event.bytes().is_some() {
                screen.drawn = Some(now);
            }
            self.redraw(screen);
        });
    }

    fn finished(&self, reference: &Reference, pulled: &Pulled) {
        self.with(|screen| {
            self.redraw(screen);
            let lines = closing(reference, pulled).join("\n");
            Self::write(screen, &format!("{lines}\n"));
        });
    }
}

impl<W> fmt::Debug for TtyProgress<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TtyProgress")
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}

/// Returns the line of a layer, never wider than the terminal.
fn render(id: &str, event: &PullEvent, columns: usize) -> String {
    let mut line = format!("{id}: {}", event.text());
    if let Some((current, total)) = event.bytes() {
        let cells = columns.saturating_sub(OTHER_CELLS).min(MAX_BAR_CELLS);
        if cells >= MIN_BAR_CELLS && total > 0 {
            line.push(' ');
            line.push_str(&bar(current, total, cells));
        }
        line.push_str(&format!(" {:>8}", size(current)));
        if total >= current && total > 0 {
            line.push('/');
            line.push_str(&size(total));
        }
    }
    // The last cell stays free: a full line would wrap and move everything below.
    line.chars()
        .take(columns.saturating_sub(1).max(1))
        .collect()
}

fn bar(current: u64, total: u64, cells: usize) -> String {
    let part = u128::from(current.min(total)) * cells as u128 / u128::from(total.max(1));
    let full = usize::try_from(part).unwrap_or(cells).min(cells);
    let head = if full < cells { ">" } else { "" };
    let rest = cells - full - head.len();
    format!("[{}{head}{}]", "=".repeat(full), " ".repeat(rest))
}

/// Formats bytes in decimal units with four digits at most, as Docker does.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut scale = 1u64;
    let mut unit = 0;
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    let whole = bytes / scale;
    let digits = if whole >= 100 {
        1
    } else if whole >= 10 {
        2
    } else {
        3
    };
    let fraction = (bytes % scale) * 10u64.pow(digits) / scale;
    let text = format!("{whole}.{fraction:0width$}", width = digits as usize);
    format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_four_digits_at_most() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (12_345_678, "12.34MB"),
            (45_000_000, "45MB"),
            (1_234_567_890, "1.234GB"),
            (u64::MAX, "18446PB"),
        ] {
            let got = size(bytes);
            assert!(
                got == text || (bytes == u64::MAX && got.starts_with("18446")),
                "{got}"
            );
        }
    }

    #[test]
    fn bars_fill_up() {
        assert_eq!(bar(0, 10, 10), "[>         ]");
        assert_eq!(bar(4, 10, 10), "[====>     ]");
        assert_eq!(bar(10, 10, 10), "[==========]");
        assert_eq!(bar(99, 10, 10), "[==========]");
        assert_eq!(bar(u64::MAX, u64::MAX, 50).len(), 52);
    }

    #[test]
    fn no_line_reaches_the_last_column() {
        let event = PullEvent::Downloading {
            current: 12_300_000,
            total: 45_000_000,
        };
        assert_eq!(
            render("0123456789ab", &event, 120),
            format!(
                "0123456789ab: Downloading [{}>{}]   12.3MB/45MB",
                "=".repeat(13),
                " ".repeat(36)
            )
        );
        for columns in 0..130 {
            let line = render("0123456789ab", &event, columns);
            assert!(line.chars().count() < columns.max(2));
        }
    }

    #[test]
    fn byte_counts_are_throttled_and_states_are_not() {
        let progress = TtyProgress::new(Vec::new(), 80, 24);
        progress.event("a", PullEvent::PullingFsLayer);
        progress.event("b", PullEvent::PullingFsLayer);
        for current in 0..1000 {
            progress.event(
                "a",
                PullEvent::Downloading {
                    current,
                    total: 1000,
                },
            );
        }
        progress.event("b", PullEvent::PullComplete);
        let text = String::from_utf8(progress.into_inner()).unwrap();
        assert!(text.matches("Downloading").count() < 50, "{text:?}");
        assert!(
            text.contains("\x1b[1A\r\x1b[2Kb: Pull complete\r\x1b[1B"),
            "{text:?}"
        );
        assert!(text.contains("\x1b[2A\r\x1b[2Ka: Downloading"), "{text:?}");
    }
}
