//! Markdown, as far as the reference pages use it, as the body of a man page: man(7) macros.
//!
//! A table becomes a list with one entry a row, since a terminal has no room for four columns: the first cell is the
//! entry's tag, the last one its text, those in between follow with their heading. Links lose their target, which is
//! of no use on a terminal, unless it is a page of the Web.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// The page as roff. Its title is left out, and headings of the second level become sections.
pub(crate) fn roff(markdown: &str) -> String {
    let mut page = Page::default();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        page.take(event);
    }
    page.out
}

/// Text as roff shows it literally: no escapes, hyphens that can be searched for and copied.
pub(crate) fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// The rows of the first table below `heading`, the heading row first; each with its cells as Markdown.
pub(crate) fn table(markdown: &str, heading: &str) -> Vec<Vec<String>> {
    let below = markdown.lines().skip_while(|line| *line != heading);
    let rows = below
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    rows.filter(|line| !line.starts_with("|---"))
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

#[derive(Default)]
struct Page {
    out: String,
    /// The text of the paragraph, cell or heading under way.
    line: String,
    /// How deep in bold or italics; the inner font goes back to the outer one.
    fonts: Vec<&'static str>,
    /// Lists under way: the next number, or `None` for bullets.
    lists: Vec<Option<u64>>,
    /// Where a link leads, and where its text began in `line`.
    link: Option<(String, usize)>,
    title: bool,
    code: bool,
    heads: Vec<String>,
    cells: Vec<String>,
}

impl Page {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.code => self.out.push_str(&verbatim(&text)),
            Event::Text(text) => self.line.push_str(&escape(&text)),
            Event::Code(text) => {
                self.font("\\fB");
                self.line.push_str(&escape(&text));
                self.font_ends();
            }
            Event::SoftBreak => self.line.push(' '),
            Event::HardBreak => {
                self.line.push_str("\n.br\n");
            }
            // Comments and the like: nothing for a reader.
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Heading { level, .. } => self.title = level == HeadingLevel::H1,
            Tag::Paragraph if self.lists.is_empty() => self.out.push_str(".PP\n"),
            Tag::CodeBlock(CodeBlockKind::Fenced(_) | CodeBlockKind::Indented) => {
                self.code = true;
                self.out.push_str(".PP\n.RS 4\n.EX\n");
            }
            Tag::List(first) => self.lists.push(first),
            Tag::Item => {
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}.", *number - 1)
                    }
                    _ => "\\(bu".to_owned(),
                };
                self.out.push_str(&format!(".IP {mark} 4\n"));
            }
            Tag::Strong => self.font("\\fB"),
            Tag::Emphasis => self.font("\\fI"),
            Tag::Link { dest_url, .. } => {
                self.link = Some((dest_url.into_string(), self.line.len()))
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => {
                let text = std::mem::take(&mut self.line);
                match level {
                    HeadingLevel::H1 => {}
                    HeadingLevel::H2 => self.out.push_str(&format!(".SH {}\n", quoted(&text))),
                    _ => self.out.push_str(&format!(".SS {}\n", quoted(&text))),
                }
            }
            TagEnd::Paragraph | TagEnd::Item => self.text_ends(),
            TagEnd::CodeBlock => {
                self.code = false;
                self.out.push_str(".EE\n.RE\n");
            }
            TagEnd::List(_) => {
                self.lists.pop();
            }
            TagEnd::Strong | TagEnd::Emphasis => self.font_ends(),
            TagEnd::Link => {
                if let Some((target, began)) = self.link.take()
                    && target.contains("://")
                    && self.line[began..] != escape(&target)
                {
                    self.line.push_str(&format!(" <{}>", escape(&target)));
                }
            }
            TagEnd::TableCell => self.cells.push(std::mem::take(&mut self.line)),
            TagEnd::TableHead => self.heads = std::mem::take(&mut self.cells),
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    /// One row of a table, as an entry of a list.
    fn row(&mut self) {
        let cells = std::mem::take(&mut self.cells);
        let [first, between @ .., last] = cells.as_slice() else {
            return;
        };
        self.out
            .push_str(&format!(".TP\n{}\n{}\n", guarded(first), guarded(last)));
        let said: Vec<_> = self.heads[1..]
            .iter()
            .zip(between)
            .filter(|(_, cell)| !cell.is_empty())
            .map(|(head, cell)| format!("{head}: {cell}"))
            .collect();
        if !said.is_empty() {
            self.out
                .push_str(&format!(".br\n{}.\n", guarded(&said.join("; "))));
        }
    }

    fn text_ends(&mut self) {
        let text = std::mem::take(&mut self.line);
        if !text.is_empty() {
            self.out.push_str(&guarded(&text));
            self.out.push('\n');
        }
    }

    fn font(&mut self, font: &'static str) {
        self.fonts.push(font);
        self.line.push_str(font);
    }

    fn font_ends(&mut self) {
        self.fonts.pop();
        self.line.push_str(self.fonts.last().unwrap_or(&"\\fR"));
    }
}

/// A heading as a macro's one argument.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\(dq"))
}

/// A line of text that would be taken for a macro is not.
fn guarded(text: &str) -> String {
    match text.starts_with(['.', '\'']) && !text.starts_with(".br") {
        true => format!("\\&{text}"),
        false => text.to_owned(),
    }
}

/// Lines of code, each as it stands.
pub(crate) fn verbatim(text: &str) -> String {
    let lines = text.lines().map(|line| guarded(&escape(line)) + "\n");
    lines.collect()
}
