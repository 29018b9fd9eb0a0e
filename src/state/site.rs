//! The files that browsers are given: the client library, and the console, a page that is its first user.
//! All of them are in the binary, and nothing in them is secret: strangers may read them.

use std::sync::Arc;

use crate::wire::http;

/// Which console there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console<'a> {
    /// None.
    Off,
    /// One that asks for a name and a password.
    On,
    /// One that also offers the demo's account.
    Demo(DemoAccount<'a>),
}

/// Who may look at the demo, and at what: told to everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DemoAccount<'a> {
    /// The user's name.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
    /// Databases in which something happens.
    pub databases: &'a [&'a str],
}

/// The files by their paths.
#[derive(Clone, Debug)]
pub struct Site {
    files: Vec<(&'static str, File)>,
    console: bool,
}

/// A file as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The header fields that go with it, but for `ETag`.
    pub fields: &'static [(&'static str, &'static str)],
    /// `ETag`: another one whenever a byte of the file is another (RFC 9110 section 8.8.3).
    pub etag: String,
    /// Its bytes, shared by all who are being sent it.
    pub body: Arc<[u8]>,
}

impl Site {
    /// All files, with that console or without one.
    pub fn new(console: Console<'_>) -> Self {
        let mut files = vec![
            ("/howler.js", File::new(LIBRARY, include_str!("../web/howler.js"))),
            ("/howler.d.ts", File::new(TYPES, include_str!("../web/howler.d.ts"))),
        ];
        let demo = match console {
            Console::Off => return Self { files, console: false },
            Console::On => String::new(),
            Console::Demo(account) => demo_element(&account),
        };
        files.extend([
            ("/", File::new(PAGE, &include_str!("../web/index.html").replace(DEMO_PLACE, &demo))),
            ("/console.js", File::new(SCRIPT, include_str!("../web/console.js"))),
            ("/console.css", File::new(STYLE, include_str!("../web/console.css"))),
        ]);
        Self { files, console: true }
    }

    /// The file of a path.
    pub fn find(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|(own, _)| *own == path).map(|(_, file)| file)
    }

    /// Whether the console is among the files.
    pub fn has_console(&self) -> bool {
        self.console
    }
}

impl File {
    fn new(fields: &'static [(&'static str, &'static str)], text: &str) -> Self {
        Self { fields, etag: format!("\"{:016x}\"", fingerprint(text.as_bytes())), body: text.as_bytes().into() }
    }

    /// Whether a client that sent this `If-None-Match` has the file already (RFC 9110 section 13.1.2). A proxy that
    /// compresses makes tags weak, so weak ones are as good.
    pub fn is_known(&self, if_none_match: Option<&str>) -> bool {
        if_none_match.is_some_and(|tags| {
            http::list(tags).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
        })
    }
}

/// FNV-1a. It tells versions of our own files apart; nobody gains by making two that agree.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where the page has room for the account.
const DEMO_PLACE: &str = "<!-- demo -->";

/// Tells the page's script of the demo's account.
fn demo_element(account: &DemoAccount<'_>) -> String {
    let json = serde_json::to_string(account).expect("texts alone");
    let escaped = json.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    format!("<meta name=\"howler-demo\" content=\"{escaped}\">")
}

/// What goes with every file. Caches ask whether it is still the same: the next version of this server has others.
macro_rules! fields {
    ($content_type:literal $(, $more:expr)*) => {
        &[
            ("Content-Type", $content_type),
            ("Cache-Control", "no-cache"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            $($more),*
        ]
    };
}

/// Pages of any origin may import the library. That gives them nothing: it is public and the same for all, and
/// whether they may connect is decided where they do.
const FOR_ALL: (&str, &str) = ("Access-Control-Allow-Origin", "*");
const LIBRARY: &[(&str, &str)] =
    fields!("text/javascript; charset=utf-8", FOR_ALL, ("X-TypeScript-Types", "./howler.d.ts"));
const TYPES: &[(&str, &str)] = fields!("application/typescript; charset=utf-8", FOR_ALL);
const SCRIPT: &[(&str, &str)] = fields!("text/javascript; charset=utf-8");
const STYLE: &[(&str, &str)] = fields!("text/css; charset=utf-8");
const PAGE: &[(&str, &str)] = fields!("text/html; charset=utf-8", ("Content-Security-Policy", POLICY));

/// The page runs its own script, talks to this server, and does nothing else. Its icon stands in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: DemoAccount<'_> = DemoAccount { username: "a\"b", password: "<&", databases: &["c", "d/e"] };

    #[test]
    fn the_console_can_be_left_out() {
        for (console, there) in [(Console::Off, false), (Console::On, true), (Console::Demo(ACCOUNT), true)] {
            let site = Site::new(console);
            assert_eq!(site.has_console(), there);
            for path in ["/", "/console.js", "/console.css"] {
                assert_eq!(site.find(path).is_some(), there, "{path}");
            }
            assert!(site.find("/howler.js").is_some() && site.find("/howler.d.ts").is_some());
            assert!(site.find("").is_none() && site.find("/index.html").is_none() && site.find("//").is_none());
        }
    }

    #[test]
    fn the_account_stands_in_the_demos_page_alone() {
        let page = |console| String::from_utf8(Site::new(console).find("/").unwrap().body.to_vec()).unwrap();
        let (plain, demo) = (page(Console::On), page(Console::Demo(ACCOUNT)));
        assert!(!plain.contains("howler-demo") && !plain.contains(DEMO_PLACE));
        let content = r#"content="{&quot;username&quot;:&quot;a\&quot;b&quot;,&quot;password&quot;:&quot;&lt;&amp;&quot;,&quot;databases&quot;:[&quot;c&quot;,&quot;d/e&quot;]}""#;
        assert!(demo.contains(content), "{demo}");
        assert_eq!(demo.matches("howler-demo").count(), 1);
    }

    #[test]
    fn tags_tell_files_apart() {
        let (on, demo) = (Site::new(Console::On), Site::new(Console::Demo(ACCOUNT)));
        let tag = |site: &Site, path: &str| site.find(path).unwrap().etag.clone();
        assert_eq!(tag(&on, "/console.js"), tag(&demo, "/console.js"));
        assert_ne!(tag(&on, "/"), tag(&demo, "/"));
        assert_ne!(tag(&on, "/console.js"), tag(&on, "/howler.js"));
        assert_eq!(fingerprint(b"foobar"), 0x8594_4171_f739_67e8, "a test vector of its authors");
    }

    #[test]
    fn known_files_are_recognized() {
        let file = File { fields: &[], etag: "\"a1\"".into(), body: Arc::new([]) };
        for known in ["\"a1\"", "W/\"a1\"", "*", "\"b\", \"a1\"", "\"b\",W/\"a1\" ,\"c\""] {
            assert!(file.is_known(Some(known)), "{known}");
        }
        for other in ["", "a1", "\"a\"", "w/\"a1\"", "\"a1", "\"b\""] {
            assert!(!file.is_known(Some(other)), "{other}");
        }
        assert!(!file.is_known(None));
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_all_of_it_is_small() {
        let site = Site::new(Console::On);
        let console: usize =
            ["/", "/console.js", "/console.css"].map(|path| site.find(path).unwrap().body.len()).iter().sum();
        assert!(console < 40 * 1024, "{console} bytes");
        let page = std::str::from_utf8(&site.find("/").unwrap().body).unwrap();
        // A path of its own would leave the folder that a proxy may have put the page into.
        for reference in page.split(" src=\"").chain(page.split(" href=\"")).skip(1) {
            let reference = reference.split('"').next().unwrap_or_default();
            let relative = !reference.contains(':') && !reference.starts_with('/');
            assert!(relative || reference.starts_with("data:") || reference.starts_with('<'), "{reference}");
        }
    }
}
