//! Static assets for browsers: the client library and the console. They are part of the binary and
//! public.

use std::sync::Arc;

use crate::wire::http;

/// Variants of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console<'a> {
    /// No console.
    Off,
    /// A console that asks for a name and a password.
    On,
    /// A console that also offers the demo's account.
    Demo(DemoAccount<'a>),
}

/// Public account of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DemoAccount<'a> {
    /// Name of the user.
    pub username: &'a str,
    /// Password.
    pub password: &'a str,
    /// Databases that change.
    pub databases: &'a [&'a str],
}

/// Files by path.
#[derive(Clone, Debug)]
pub struct StaticAssets {
    assets: Vec<(&'static str, Asset)>,
    console: bool,
}

/// An asset with its header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Header fields except `ETag`.
    pub fields: &'static [(&'static str, &'static str)],
    /// `ETag`, which changes with every byte of the asset (RFC 9110 section 8.8.3).
    pub etag: String,
    /// Content, shared by all responses.
    pub body: Arc<[u8]>,
}

impl StaticAssets {
    /// Creates the table of all assets, with this variant of the console.
    pub fn new(console: Console<'_>) -> Self {
        let mut assets = vec![
            ("/howler.js", Asset::new(LIBRARY, include_str!("../web/howler.js"))),
            ("/howler.d.ts", Asset::new(TYPES, include_str!("../web/howler.d.ts"))),
        ];
        let demo = match console {
            Console::Off => return Self { assets, console: false },
            Console::On => String::new(),
            Console::Demo(account) => demo_element(&account),
        };
        assets.extend([
            ("/", Asset::new(PAGE, &include_str!("../web/index.html").replace(DEMO_PLACE, &demo))),
            ("/console.js", Asset::new(SCRIPT, include_str!("../web/console.js"))),
            ("/console.css", Asset::new(STYLE, include_str!("../web/console.css"))),
        ]);
        Self { assets, console: true }
    }

    /// Returns the asset of a path.
    pub fn find(&self, path: &str) -> Option<&Asset> {
        self.assets.iter().find(|(own, _)| *own == path).map(|(_, asset)| asset)
    }

    /// Returns whether the console is among the assets.
    pub fn has_console(&self) -> bool {
        self.console
    }
}

impl Asset {
    fn new(fields: &'static [(&'static str, &'static str)], text: &str) -> Self {
        Self { fields, etag: format!("\"{:016x}\"", fingerprint(text.as_bytes())), body: text.as_bytes().into() }
    }

    /// Returns whether a client with this `If-None-Match` has the asset already (RFC 9110 section
    /// 13.1.2). Weak tags match too, since a proxy that compresses makes tags weak.
    pub fn is_known(&self, if_none_match: Option<&str>) -> bool {
        if_none_match.is_some_and(|tags| {
            http::list(tags).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
        })
    }
}

/// Returns the FNV-1a hash. It distinguishes versions of our own assets; a collision helps no
/// attacker.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Placeholder of the account in the page.
const DEMO_PLACE: &str = "<!-- demo -->";

/// Returns the element that contains the demo's account for the page's script.
fn demo_element(account: &DemoAccount<'_>) -> String {
    let json = serde_json::to_string(account).expect("strings serialize");
    let escaped = json.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    format!("<meta name=\"howler-demo\" content=\"{escaped}\">")
}

/// Header fields of every asset. Caches revalidate, since another version of the server has other
/// assets.
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

/// Pages of any origin may import the library, which is public. Whether they may connect is decided
/// at the connection.
const FOR_ALL: (&str, &str) = ("Access-Control-Allow-Origin", "*");
const LIBRARY: &[(&str, &str)] =
    fields!("text/javascript; charset=utf-8", FOR_ALL, ("X-TypeScript-Types", "./howler.d.ts"));
const TYPES: &[(&str, &str)] = fields!("application/typescript; charset=utf-8", FOR_ALL);
const SCRIPT: &[(&str, &str)] = fields!("text/javascript; charset=utf-8");
const STYLE: &[(&str, &str)] = fields!("text/css; charset=utf-8");
const PAGE: &[(&str, &str)] = fields!("text/html; charset=utf-8", ("Content-Security-Policy", POLICY));

/// The page may run its own script and connect to this server, and nothing else. Its icon is a
/// `data:` URL.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: DemoAccount<'_> = DemoAccount { username: "a\"b", password: "<&", databases: &["c", "d/e"] };

    #[test]
    fn the_console_can_be_turned_off() {
        for (console, there) in [(Console::Off, false), (Console::On, true), (Console::Demo(ACCOUNT), true)] {
            let assets = StaticAssets::new(console);
            assert_eq!(assets.has_console(), there);
            for path in ["/", "/console.js", "/console.css"] {
                assert_eq!(assets.find(path).is_some(), there, "{path}");
            }
            assert!(assets.find("/howler.js").is_some() && assets.find("/howler.d.ts").is_some());
            assert!(assets.find("").is_none() && assets.find("/index.html").is_none() && assets.find("//").is_none());
        }
    }

    #[test]
    fn only_the_page_of_the_demo_contains_the_account() {
        let page = |console| String::from_utf8(StaticAssets::new(console).find("/").unwrap().body.to_vec()).unwrap();
        let (plain, demo) = (page(Console::On), page(Console::Demo(ACCOUNT)));
        assert!(!plain.contains("howler-demo") && !plain.contains(DEMO_PLACE));
        let content = r#"content="{&quot;username&quot;:&quot;a\&quot;b&quot;,&quot;password&quot;:&quot;&lt;&amp;&quot;,&quot;databases&quot;:[&quot;c&quot;,&quot;d/e&quot;]}""#;
        assert!(demo.contains(content), "{demo}");
        assert_eq!(demo.matches("howler-demo").count(), 1);
    }

    #[test]
    fn different_files_have_different_tags() {
        let (on, demo) = (StaticAssets::new(Console::On), StaticAssets::new(Console::Demo(ACCOUNT)));
        let tag = |assets: &StaticAssets, path: &str| assets.find(path).unwrap().etag.clone();
        assert_eq!(tag(&on, "/console.js"), tag(&demo, "/console.js"));
        assert_ne!(tag(&on, "/"), tag(&demo, "/"));
        assert_ne!(tag(&on, "/console.js"), tag(&on, "/howler.js"));
        assert_eq!(fingerprint(b"foobar"), 0x8594_4171_f739_67e8, "a test vector of its authors");
    }

    #[test]
    fn known_files_are_recognized() {
        let asset = Asset { fields: &[], etag: "\"a1\"".into(), body: Arc::new([]) };
        for known in ["\"a1\"", "W/\"a1\"", "*", "\"b\", \"a1\"", "\"b\",W/\"a1\" ,\"c\""] {
            assert!(asset.is_known(Some(known)), "{known}");
        }
        for other in ["", "a1", "\"a\"", "w/\"a1\"", "\"a1", "\"b\""] {
            assert!(!asset.is_known(Some(other)), "{other}");
        }
        assert!(!asset.is_known(None));
    }

    #[test]
    fn the_files_are_small_and_reference_no_other_host() {
        let assets = StaticAssets::new(Console::On);
        let console: usize =
            ["/", "/console.js", "/console.css"].map(|path| assets.find(path).unwrap().body.len()).iter().sum();
        assert!(console < 40 * 1024, "{console} bytes");
        let page = std::str::from_utf8(&assets.find("/").unwrap().body).unwrap();
        // An absolute path would leave the folder under which a proxy may serve the page.
        for reference in page.split(" src=\"").chain(page.split(" href=\"")).skip(1) {
            let reference = reference.split('"').next().unwrap_or_default();
            let relative = !reference.contains(':') && !reference.starts_with('/');
            assert!(relative || reference.starts_with("data:") || reference.starts_with('<'), "{reference}");
        }
    }
}
