//! `/_session`: login, identity and logout.

use std::time::Duration;

use serde_json::Value;

use super::accounts::{Identity, Refusal};
use super::http::{Request, Response, form_field};
use super::rejections::{EMPTY_COOKIE, reject_login};
use super::state::State;

/// Serves `POST /_session`.
pub(super) fn log_in(state: &mut State, request: &Request, now: Duration) -> Response {
    let (name, password) = match credentials(request) {
        Ok(credentials) => credentials,
        Err(response) => return response,
    };
    let client = request.client();
    match state.accounts.log_in(&name, &password, &client, now) {
        Ok(identity) => {
            let cookie = state.accounts.new_cookie(&name, now);
            Response::json(200, &format!(r#"{{"ok":true,{}}}"#, identity.to_json())).with("Set-Cookie", cookie)
        }
        Err(refusal @ (Refusal::Incorrect | Refusal::Locked)) => reject_login(refusal),
        Err(_) => reject_login(Refusal::Incorrect),
    }
}

/// Serves `GET /_session`.
pub(super) fn show(identity: &Identity) -> Response {
    let method = identity.method.map_or_else(String::new, |method| format!(r#","authenticated":"{method}""#));
    Response::json(
        200,
        &format!(
            r#"{{"ok":true,"userCtx":{{{}}},"info":{{"authentication_handlers":["cookie","default","jwt"]{method}}}}}"#,
            identity.to_json()
        ),
    )
}

/// Serves `DELETE /_session`. The browser drops the cookie, and CouchDB goes on accepting it.
pub(super) fn log_out() -> Response {
    Response::json(200, r#"{"ok":true}"#).with("Set-Cookie", EMPTY_COOKIE.to_owned())
}

fn credentials(request: &Request) -> Result<(String, String), Response> {
    let content_type = request.header("content-type").unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let bad_request = |reason| Response::error(400, "bad_request", reason);
    let no_name = || bad_request("request body must contain a username");
    let no_password = || bad_request("request body must contain a password");
    match content_type.to_ascii_lowercase().as_str() {
        "application/json" => {
            let body: Value = serde_json::from_slice(&request.body).map_err(|_| bad_request("invalid UTF-8 JSON"))?;
            if !body.is_object() {
                return Err(bad_request("Request body must be a JSON object"));
            }
            let name = body.get("name").or_else(|| body.get("username"));
            let name = text(name.ok_or_else(no_name)?)?;
            let password = text(body.get("password").ok_or_else(no_password)?)?;
            Ok((name, password))
        }
        "application/x-www-form-urlencoded" => {
            let body = String::from_utf8_lossy(&request.body);
            let name = form_field(&body, "name").or_else(|| form_field(&body, "username"));
            let password = form_field(&body, "password");
            Ok((name.ok_or_else(no_name)?, password.ok_or_else(no_password)?))
        }
        _ => Err(Response::error(
            415,
            "bad_content_type",
            "Content-Type must be application/x-www-form-urlencoded or application/json",
        )),
    }
}

/// Returns the string of a JSON value. CouchDB crashes over any other value.
fn text(value: &Value) -> Result<String, Response> {
    value.as_str().map(str::to_owned).ok_or_else(|| Response::error(500, "unknown_error", "badarg"))
}
