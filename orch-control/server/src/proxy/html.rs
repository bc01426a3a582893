//! Links in what a proxied server answers, so that a browser that follows them comes back through the proxy.
//!
//! As in Kubernetes (`k8s.io/apimachinery/pkg/util/proxy`), only links to the server's own root are touched: in
//! `Location`, and in those attributes of HTML that hold one URL.

/// Where links are to lead.
#[derive(Clone, Debug)]
pub struct Base {
    /// The path of the proxy itself, without a slash at its end.
    pub prefix: String,
    /// The server's own names, `host:port`: links to other hosts stay as they are.
    pub hosts: Vec<String>,
}

impl Base {
    /// `url` as seen from outside; none if it stays as it is.
    pub fn rewrite(&self, url: &str) -> Option<String> {
        let path = match url.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => self.own(rest)?,
            _ => match url.strip_prefix("//") {
                Some(rest) => self.own(rest)?,
                None => url,
            },
        };
        let inside = path
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        match path.starts_with('/') {
            false => None,
            true if inside => (path.len() < url.len()).then(|| path.to_owned()),
            true => Some(format!("{}{path}", self.prefix)),
        }
    }

    /// What follows the host in `host/path`, if the host is the server.
    fn own<'a>(&self, rest: &'a str) -> Option<&'a str> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        self.hosts.iter().any(|own| own == host).then_some(path)
    }
}

/// The attributes that hold one URL, by element (HTML 4.01, index of attributes of type `%URI`; HTML's `source`
/// and `video`).
fn holds_url(element: &str, attribute: &str) -> bool {
    let attributes: &[&str] = match element {
        "a" | "area" | "link" => &["href"],
        "blockquote" | "del" | "ins" | "q" => &["cite"],
        "form" => &["action"],
        "frame" | "iframe" => &["longdesc", "src"],
        "head" => &["profile"],
        "img" => &["longdesc", "src", "usemap"],
        "input" => &["src", "usemap"],
        "object" => &["classid", "codebase", "data", "usemap"],
        "script" | "source" => &["src"],
        "video" => &["poster"],
        _ => &[],
    };
    attributes.contains(&attribute)
}

/// Elements whose content is text, whatever it looks like.
const TEXT_ELEMENTS: [&str; 5] = ["script", "style", "textarea", "title", "xmp"];
/// A tag that is longer than this is taken for text.
const LONGEST_TAG: usize = 64 * 1024;

/// Rewrites the links of an HTML document that comes in pieces; everything else passes byte by byte.
pub struct Rewriter {
    base: Base,
    /// What may be a part of a tag.
    pending: Vec<u8>,
    /// The element whose text we are in.
    within: Option<String>,
}

/// What the start of a text is.
enum Piece {
    /// So many bytes that are no tag.
    Text(usize),
    /// So many bytes that are a tag.
    Tag(usize),
    /// Not clear before there is more.
    Unfinished,
}

impl Rewriter {
    /// A rewriter at the start of a document.
    pub fn new(base: Base) -> Self {
        Self {
            base,
            pending: Vec::new(),
            within: None,
        }
    }

    /// Takes the next piece; answers what is settled.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(piece);
        let pending = std::mem::take(&mut self.pending);
        let (mut out, mut rest) = (Vec::with_capacity(pending.len()), pending.as_slice());
        while !rest.is_empty() {
            let taken = match self.next(rest) {
                Piece::Text(length) => {
                    out.extend_from_slice(&rest[..length]);
                    length
                }
                Piece::Tag(length) => {
                    self.tag(&rest[..length], &mut out);
                    length
                }
                Piece::Unfinished if rest.len() > LONGEST_TAG => {
                    out.extend_from_slice(rest);
                    rest.len()
                }
                Piece::Unfinished => break,
            };
            rest = &rest[taken..];
        }
        self.pending = rest.to_vec();
        out
    }

    /// What is left at the end.
    pub fn finish(self) -> Vec<u8> {
        self.pending
    }

    fn next(&mut self, text: &[u8]) -> Piece {
        if let Some(element) = &self.within {
            let end = format!("</{element}");
            return match find_ignoring_case(text, end.as_bytes()) {
                Some(0) => {
                    self.within = None;
                    self.next(text)
                }
                Some(at) => Piece::Text(at),
                // The last bytes may be the beginning of the end.
                None if text.len() >= end.len() => Piece::Text(text.len() - end.len() + 1),
                None => Piece::Unfinished,
            };
        }
        match text.iter().position(|b| *b == b'<') {
            None => return Piece::Text(text.len()),
            Some(0) => {}
            Some(at) => return Piece::Text(at),
        }
        if text.starts_with(b"<!--") {
            return match text.windows(3).skip(4).position(|w| w == b"-->") {
                Some(at) => Piece::Text(at + 4 + 3),
                None => Piece::Unfinished,
            };
        }
        if b"<!--".starts_with(text) {
            return Piece::Unfinished;
        }
        match text.get(1) {
            Some(b) if b.is_ascii_alphabetic() || *b == b'/' => {}
            Some(_) => return Piece::Text(1),
            None => return Piece::Unfinished,
        }
        let mut quote = None;
        for (at, byte) in text.iter().enumerate() {
            match (quote, byte) {
                (Some(q), b) if q == *b => quote = None,
                (None, b'"' | b'\'') if text[..at].trim_ascii_end().ends_with(b"=") => quote = Some(*byte),
                (None, b'>') => return Piece::Tag(at + 1),
                _ => {}
            }
        }
        Piece::Unfinished
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let Ok(text) = std::str::from_utf8(tag) else {
            out.extend_from_slice(tag);
            return;
        };
        let name_end = text[1..]
            .find(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/')
            .map_or(text.len(), |at| at + 1);
        let element = text[1..name_end].to_ascii_lowercase();
        out.extend_from_slice(&tag[..name_end]);
        let mut rest = &text[name_end..];
        while let Some((before, value, after)) = next_value(rest) {
            let name = before
                .trim_end_matches(['"', '\''])
                .trim_end()
                .trim_end_matches('=')
                .trim_end()
                .rsplit(|c: char| c.is_ascii_whitespace() || c == '/')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            out.extend_from_slice(before.as_bytes());
            let url = holds_url(&element, &name)
                .then(|| self.base.rewrite(value))
                .flatten();
            out.extend_from_slice(url.as_deref().unwrap_or(value).as_bytes());
            rest = after;
        }
        out.extend_from_slice(rest.as_bytes());
        if TEXT_ELEMENTS.contains(&element.as_str()) {
            self.within = Some(element);
        }
    }
}

/// Cuts a tag around the next value of an attribute; an opening quote belongs to what is before it.
fn next_value(text: &str) -> Option<(&str, &str, &str)> {
    let after = text.find('=')? + 1;
    let blank = text[after..].len() - text[after..].trim_start().len();
    let start = after + blank;
    let (start, end) = match text.as_bytes().get(start)? {
        quote @ (b'"' | b'\'') => {
            let quote = char::from(*quote);
            (start + 1, start + 1 + text[start + 1..].find(quote)?)
        }
        _ => {
            let end = text[start..].find(|c: char| c.is_ascii_whitespace() || c == '>')?;
            (start, start + end)
        }
    };
    Some((&text[..start], &text[start..end], &text[end..]))
}

fn find_ignoring_case(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|w| w.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Base {
        Base {
            prefix: "/api/v1/namespaces/n/pods/p:80/proxy".into(),
            hosts: vec!["10.0.0.1:80".into(), "k8s:6443".into()],
        }
    }

    #[test]
    fn only_links_to_the_servers_root_lead_back() {
        for (url, want) in [
            ("/x", Some("/api/v1/namespaces/n/pods/p:80/proxy/x")),
            ("/", Some("/api/v1/namespaces/n/pods/p:80/proxy/")),
            (
                "/x/?a=/b#c",
                Some("/api/v1/namespaces/n/pods/p:80/proxy/x/?a=/b#c"),
            ),
            (
                "http://10.0.0.1:80/x",
                Some("/api/v1/namespaces/n/pods/p:80/proxy/x"),
            ),
            ("//k8s:6443/x", Some("/api/v1/namespaces/n/pods/p:80/proxy/x")),
            (
                "https://k8s:6443/api/v1/namespaces/n/pods/p:80/proxy/x",
                Some("/api/v1/namespaces/n/pods/p:80/proxy/x"),
            ),
            ("/api/v1/namespaces/n/pods/p:80/proxy/x", None),
            ("http://example.com/x", None),
            ("x/y", None),
            ("?a=b", None),
            ("mailto:a@b", None),
            ("http://10.0.0.1:80", None),
        ] {
            assert_eq!(base().rewrite(url).as_deref(), want, "{url}");
        }
    }

    /// Rewrites `html` in pieces of every size: the outcome must be the same.
    #[track_caller]
    fn check(html: &str, want: &str) {
        let want = want.replace("P/", "/api/v1/namespaces/n/pods/p:80/proxy/");
        for size in 1..=html.len() {
            let mut rewriter = Rewriter::new(base());
            let mut got = Vec::new();
            for piece in html.as_bytes().chunks(size) {
                got.extend(rewriter.push(piece));
            }
            got.extend(rewriter.finish());
            assert_eq!(String::from_utf8_lossy(&got), want, "in pieces of {size}");
        }
    }

    #[test]
    fn html_keeps_all_but_its_links() {
        check(
            r#"<a href="/rewriteme">test</a>"#,
            r#"<a href="P/rewriteme">test</a>"#,
        );
        check(
            "<A HREF='/a' class=/b>x < y</A>",
            "<A HREF='P/a' class=/b>x < y</A>",
        );
        check("<img src=/a><br/>", "<img src=P/a><br/>");
        check(
            r#"<img src = "/a" alt="/b>c">"#,
            r#"<img src = "P/a" alt="/b>c">"#,
        );
        check(
            r#"<a title="=" href="/a?x=1">"#,
            r#"<a title="=" href="P/a?x=1">"#,
        );
        check(r#"<a data-href="/a" href="b">"#, r#"<a data-href="/a" href="b">"#);
        check(
            r#"<!-- <a href="/a"> --><a href="/b">"#,
            r#"<!-- <a href="/a"> --><a href="P/b">"#,
        );
        check(
            r#"<script src="/a">x = '<a href="/b">'</script><a href="/c">"#,
            r#"<script src="P/a">x = '<a href="/b">'</script><a href="P/c">"#,
        );
        check("<!DOCTYPE html><p>5 <6", "<!DOCTYPE html><p>5 <6");
        check(r#"<a href="/unfinished"#, r#"<a href="/unfinished"#);
        check("<a href=\"/a\"\n>\u{fc}</a>", "<a href=\"P/a\"\n>\u{fc}</a>");
    }
}
