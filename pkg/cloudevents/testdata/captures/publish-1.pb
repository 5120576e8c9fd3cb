
1/shop1.0"order.created*

flag*
	schemauri*	https://x*
blob"*
subjecteu/42*%
datacontenttypeapplication/json*
time
:¥ëÜÊ*
countûÿÿÿÿÿÿÿÿ2{"order":1}