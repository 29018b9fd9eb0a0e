//! Responses that reject a request.

use super::accounts::Refusal;
use super::http::Response;

/// The cookie that a rejected login and a logout set.
pub(super) const EMPTY_COOKIE: &str = "AuthSession=; Version=1; Path=/; HttpOnly";

pub(super) fn reject(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Incorrect => unauthorized("Name or password is incorrect."),
        Refusal::Locked => {
            Response::error(403, "forbidden", "Account is temporarily locked due to multiple authentication failures")
        }
        Refusal::MalformedCookie => {
            Response::error(400, "bad_request", "Malformed AuthSession cookie. Please clear your cookies.")
        }
        Refusal::BadToken => Response::error(400, "bad_request", "Bad HMAC"),
        Refusal::ExpiredToken => unauthorized("exp not in future"),
    }
}

/// Returns the response to a rejected login, which sets an empty cookie.
pub(super) fn reject_login(refusal: Refusal) -> Response {
    reject(refusal).with("Set-Cookie", EMPTY_COOKIE.to_owned())
}

pub(super) fn fault(status: u16) -> Response {
    match status {
        401 => unauthorized("Name or password is incorrect."),
        403 => reject(Refusal::Locked),
        404 => no_database(),
        _ => Response::error(status, "internal_server_error", "a fault was asked for"),
    }
}

pub(super) fn redirect_to_login() -> Response {
    Response::json(302, "")
        .with("Location", "/_utils/session.html?return=%2F&reason=You%20are%20not%20a%20server%20admin.".to_owned())
}

pub(super) fn unauthorized(reason: &str) -> Response {
    Response::error(401, "unauthorized", reason)
}

pub(super) fn not_admin() -> Response {
    unauthorized("You are not a server admin.")
}

pub(super) fn no_database() -> Response {
    Response::error(404, "not_found", "Database does not exist.")
}

pub(super) fn missing() -> Response {
    Response::error(404, "not_found", "missing")
}

pub(super) fn database_exists() -> Response {
    Response::error(412, "file_exists", "The database could not be created, the file already exists.")
}

pub(super) fn not_allowed(methods: &str) -> Response {
    let reason = format!("Only {methods} allowed");
    Response::error(405, "method_not_allowed", &reason).with("Allow", methods.to_owned())
}
